/* paces.h - what of a machine's speed is not its memory and not its 8-bit products: seven small
 * measurements, which decide how fast small models and long prompts run; and how a container's
 * quota of processors cuts them up. 0: not measured. */
#ifndef MXD_HARDWARE_PACES_H
#define MXD_HARDWARE_PACES_H

typedef struct mxd_paces {
    double near_bytes_per_s; /* weights of a model that fits into the caches, one row */
    double tile_s;          /* what a product of 16 rows with a panel costs beside its operations */
    double float_ops_per_s; /* attention; multiply and add count as two */
    double row_ops_per_s;   /* the same of a single row: keys and values serve two queries only */
    double values_per_s;    /* numbers through norms and activations */
    double region_s;        /* until all threads have begun and ended a piece of work */
    double handoff_s;       /* from one thread to another that sleeps */
    /* Rates above are what a quota lets through over some time. It lets all threads work for
     * `duty` of each of its periods, and then stops them for pause_s, the rest of it. 0, 0: no
     * quota. */
    double duty, pause_s;
} mxd_paces;

#endif
