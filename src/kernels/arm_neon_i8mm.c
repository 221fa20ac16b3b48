/* arm_neon_i8mm.c - the table "neon-i8mm": arm_neon.c with USDOT. */
#define MXD_ARM_DOT 2
#include "kernels/arm_neon.c"
