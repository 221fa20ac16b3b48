/* core_mutants.h - rules that a build of the simulator can take away, to see that it notices.
 *
 * A normal build has MXD_MUTANT 0 and every MUTANT(x) is the constant false. tests/sim builds the
 * core once per mutant; each must fail. A mutant that survives is news: a rule that is not needed,
 * or an oracle that is blind.
 */
#ifndef MXD_CLUSTER_CORE_MUTANTS_H
#define MXD_CLUSTER_CORE_MUTANTS_H

#ifndef MXD_MUTANT
#define MXD_MUTANT 0
#endif

/* clang-format off */
#define MXD_MUTANT_MAP(X)                                                             \
    X(1,  NO_EPOCH_CHECK,    "a worker computes frames of any epoch")                 \
    X(2,  NO_POSITION_CHECK, "a worker computes at any position")                     \
    X(3,  NO_REQUEST_CHECK,  "a worker continues another request's slot")             \
    X(4,  KEEP_KV,           "installing a plan does not empty the KV")               \
    X(5,  ANY_RESULT,        "the coordinator appends results of any epoch")          \
    X(6,  DOUBLE_RESULT,     "the coordinator appends a result that comes twice")     \
    X(7,  NO_BARRIER,        "serving starts before every stage is ready")            \
    X(8,  NO_REPLAY,         "a new epoch goes on where the old one was")             \
    X(9,  NO_STEP_DEADLINE,  "a step that never returns is never given up")           \
    X(10, NO_SILENCE,        "a silent node is never suspected")                      \
    X(11, NO_RESPAWN,        "a dead local worker is not started again")              \
    X(12, LEAK_SLOT,         "a cancelled request keeps its slot")                    \
    X(13, EPOCH_STANDS,      "a new plan goes by the old plan's epoch")               \
    X(14, FORGET_NACK,       "a NACK changes nothing")                                \
    X(15, OLD_LOAD,          "a load that a newer plan overtook counts for it")       \
    X(16, TWO_LIVES,         "two living nodes may have one id")                      \
    X(17, TOKEN_FIRST,       "a token is shown before it is in the journal")          \
    X(18, REINSTALL,         "a repeated plan empties the KV again")                  \
    X(19, NO_REJOIN,         "a degraded plan is never mended")                       \
    X(20, STOP_IGNORED,      "a stop id does not end the answer")
/* clang-format on */

enum {
#define X(n, name, text) MXD_MUTANT_##name = n,
    MXD_MUTANT_MAP(X)
#undef X
};
#define MUTANT(name) (MXD_MUTANT == MXD_MUTANT_##name)

#endif
