/* Runs a target over every file of the folders named as arguments and prints TAP. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "fuzz.h"

static int n_tests;

/* The input lies in a block of exactly its size, so a sanitizer sees one byte too far. */
static int run_file(const char *folder, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    if (!f) return 1;
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    uint8_t *data = malloc(n > 0 ? (size_t)n : 1);
    size_t got = data && n > 0 ? fread(data, 1, (size_t)n, f) : 0;
    fclose(f);
    if (data) LLVMFuzzerTestOneInput(data, got);
    free(data);
    printf("ok %d - %s\n", ++n_tests, name);
    return data == NULL;
}

int main(int argc, char **argv) {
    int bad = 0;
    for (int i = 1; i < argc; i++) {
        struct dirent **list;
        int n = scandir(argv[i], &list, NULL, alphasort);
        for (int k = 0; k < n; k++) {
            if (list[k]->d_name[0] != '.') bad |= run_file(argv[i], list[k]->d_name);
            free(list[k]);
        }
        if (n >= 0)
            free(list);
        else
            bad = 1;
    }
    printf("1..%d\n", n_tests);
    return bad || !n_tests;
}
