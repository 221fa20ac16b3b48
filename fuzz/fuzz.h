/* fuzz.h - what every target here is: one function over hostile bytes.
 *
 * LLVMFuzzerTestOneInput returns 0 always; a finding is a crash, a sanitizer report or a hang.
 * With clang and -Dfuzz=true each target is also built with libFuzzer; otherwise replay.c gives it
 * a main that runs the files of its corpus as an ordinary test. */
#ifndef MXD_FUZZ_H
#define MXD_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
