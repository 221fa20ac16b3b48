/* core_kit.h - a coordinator without a cluster, and short verbs for what happens to it.
 *
 * hello, beat, ready and gone are what a node says over its link; submit and cancel what a client
 * wants; answer what the last stage sends back. did, find and count look at what the coordinator
 * has said since the last `clear`. Links are numbers of the test's choice. */
#ifndef MXD_TESTS_CORE_KIT_H
#define MXD_TESTS_CORE_KIT_H

#include "cluster/core.h"
#include "test.h"

enum { LAYERS = 8, CTX = 32, SLOTS = 2, MAX_ACTIONS = 2000 };

struct core_kit {
    void *memory;
    mxd_coord *c;
    mxd_coord_cfg cfg;
    mxd_coord_action list[MAX_ACTIONS]; /* of everything since the last `clear` */
    mxd_sampled sampled[MAX_ACTIONS];
    mxd_core_run runs[MAX_ACTIONS];
    int n;
    int64_t now;
    int capacity;        /* layers a node can hold */
    int n_slots;         /* 0: SLOTS */
    int together;        /* nodes of one stage; 0: 1 */
    double first;        /* share of a stage's first rank; 0: all equal */
    double decode_ms;    /* of every stage, says the plan */
    double bandwidth[4]; /* of nodes, when a plan was asked for last */
};
extern struct core_kit t;
extern const int32_t prompt[CTX], stops[1];

/* Stages of `together` ranks each, as far as there are nodes. */
mxd_rc kit_plan(void *ctx, const mxd_plan_node *nodes, int n, const mxd_plan_link *avoid,
                int n_avoid, mxd_plan *out, mxd_err *err);

void begin_with(int n_local); /* a coordinator with local workers A, B, C */
void end(void);
void serving_two(void); /* remote nodes X on link 1, Y on link 2 */

void give(mxd_coord_event e); /* one event, now; the invariants are checked after it */
void pass(int64_t ms, uint64_t a, uint64_t b); /* the nodes with these links go on beating */

void hello(uint64_t link, const char *id, uint64_t incarnation);
void beat(uint64_t link);
void ready(uint64_t link);
void gone(uint64_t link);
void submit(uint64_t request, int n_prompt, int max_tokens);
void cancel(uint64_t request);

void answer_at(uint32_t pos, int32_t token, uint64_t epoch); /* the last STEP, which has one run */
void answer(int32_t token);
void answer_chunks(
    int32_t token); /* every step of this epoch since `clear`; the last one samples */

void clear(void);
int find(mxd_coord_action_kind kind);                    /* the last one; -1 */
const mxd_coord_action *did(mxd_coord_action_kind kind); /* the last one; NULL */
int count(mxd_coord_action_kind kind);
mxd_coord_view view(void);

#endif
