/* proc.h - what this process is and uses. Any thread. */
#ifndef MXD_BASE_PROC_H
#define MXD_BASE_PROC_H

#include <stdint.h>

uint64_t mxd_proc_rss_bytes(void); /* resident memory now; 0: unknown */
int mxd_proc_cores(void);          /* cores this process may run on; at least 1 */

/* The calling thread gives way to others from now on, as far as the system knows such a thing. */
void mxd_proc_give_way(void);

#endif
