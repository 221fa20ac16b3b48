/* arm_neon_dot.c - the table "neon-dot": arm_neon.c with SDOT. */
#define MXD_ARM_DOT 1
#include "kernels/arm_neon.c"
