/* mutants.h - rules that a build of the simulator can take away, to see that it notices.
 *
 * A normal build has MXD_MUTANT 0 and every MUTANT(x) is the constant false. tests/sim builds the
 * control core and the page tables once per mutant; each must fail. A mutant that survives is news:
 * a rule that is not needed, or an oracle that is blind.
 */
#ifndef MXD_RUNTIME_MUTANTS_H
#define MXD_RUNTIME_MUTANTS_H

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
    X(20, STOP_IGNORED,      "a stop id does not end the answer")                     \
    X(21, KEEP_WARM,         "a new epoch takes the old one's idle slots for warm")   \
    X(22, ONE_TOO_MANY,      "a prompt begins with one token more than is common")    \
    X(23, SHARE_PARTIAL,     "another slot's last page is shared half full")          \
    X(24, CUT_SHARED,        "a slot goes on in the middle of a shared page")         \
    X(25, FREE_SHARED,       "a page is free while another sequence uses it")         \
    X(26, STALE_SOURCE,      "a slot is reused that another was to begin with")       \
    X(27, LOST_LEADER,       "who waits for another's prefix waits after its end")    \
    X(28, NO_SOURCE_CHECK,   "a worker begins with whatever a slot holds")            \
    X(29, CUT_STATE,         "recurrent state is taken for what it was earlier")      \
    X(30, OLD_STATE,         "a kept state outlives the sequence that it is of")       \
    X(31, BLAME_WAITING,     "a rank that waits for another is blamed for the step")  \
    X(32, NO_ABORT,          "a new plan leaves exchanges of the old one waiting")    \
    X(33, OLD_GROUP,         "a group of an older epoch counts for a new plan")            \
    X(34, RESTORE_PROMPT,    "a restored request goes on without its accepted tokens") \
    X(35, EPOCH_FROM_ONE,    "a coordinator that starts again counts epochs anew")     \
    X(36, NO_CANARY,         "a plan whose numbers are wrong serves")                  \
    X(37, OLD_READY,         "a node that is ready for an older plan counts as ready")
/* clang-format on */

enum {
#define X(n, name, text) MXD_MUTANT_##name = n,
    MXD_MUTANT_MAP(X)
#undef X
};
#define MUTANT(name) (MXD_MUTANT == MXD_MUTANT_##name)

#endif
