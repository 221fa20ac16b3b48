/* fake_engine.h - an engine that answers from a script, for tests of what stands on api/engine.h.
 *
 * It has the real tokenizer and template of a folder, no model and no cluster. What it says is
 * written in the prompt; the last of each directive counts:
 *   [[say:TEXT]]     answers TEXT (\n is a line break, \x5d\x5d would end it)
 *   [[count:N]]      answers N numbered words
 *   [[delay:MS]]     between tokens; [[first:MS]] before the first
 *   [[fail:N:CODE]]  after N tokens the request fails with E_CODE
 *   [[refuse:CODE]]  submit fails with E_CODE
 * Without one it says "Hello from the fake engine." The tokens are those of the text.
 */
#ifndef FAKE_ENGINE_H
#define FAKE_ENGINE_H

#include "api/engine.h"

void fake_engine_set_state(mxd_engine *e, mxd_engine_state state);
int fake_engine_live(mxd_engine *e);          /* streams not yet freed */
int64_t fake_engine_cancel_ms(mxd_engine *e); /* when the last stream was cancelled; 0 never */
uint64_t fake_engine_submitted(mxd_engine *e);
void fake_engine_set_journal_problem(mxd_engine *e, const char *text); /* NULL: none; borrowed */
uint64_t fake_engine_forgotten(mxd_engine *e);
const mxd_gen *fake_engine_last(mxd_engine *e); /* the last gen; its pointers are gone */

#endif
