/* clock.h - the two clocks. Durations and deadlines use the monotonic one; wall time is only for
 * showing to people and for fields of an API that are defined as Unix time. Any thread. */
#ifndef MXD_BASE_CLOCK_H
#define MXD_BASE_CLOCK_H

#include <stdint.h>

int64_t mxd_now_ns(void); /* monotonic */
static inline int64_t mxd_now_ms(void) { return mxd_now_ns() / 1000000; }
int64_t mxd_wall_ms(void);     /* since 1970 UTC; may jump */
void mxd_sleep_ms(int64_t ms); /* at least this long, signals notwithstanding */

#endif
