/* dmath.h - exp and log in double precision, with the same bits on every machine.
 *
 * The C library's differ between systems in the last bit, and a last bit can change a token. These
 * use only IEEE + - * and integer steps; about 1 ulp off. Reentrant.
 */
#ifndef MXD_BASE_DMATH_H
#define MXD_BASE_DMATH_H

double mxd_exp64(double x); /* 0 below -745, infinity above 709.7; NaN stays NaN */
double mxd_log64(double x); /* x > 0; -infinity for 0, NaN below */

#endif
