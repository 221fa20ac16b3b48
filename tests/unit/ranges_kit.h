/* ranges_kit.h - copies of models in which everything is garbage but what one node needs. */
#ifndef MXD_TEST_RANGES_KIT_H
#define MXD_TEST_RANGES_KIT_H

#include "model/model.h"

/* A copy of `folder`, in *out, where all bytes of tensors outside layers [layer0, layer1) (0: all),
 * or of rank's part of them, are 0xff. Returns how many bytes were kept. */
uint64_t ranges_kit_make(char out[64], const char *folder, int layer0, int layer1, int size,
                         const double *weights, int rank);
void ranges_kit_remove(const char *dir);

#endif
