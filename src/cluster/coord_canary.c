/* coord_canary.c - what the plan canary has to answer, kept over restarts.
 *
 * STATE/canary has a line for each model that was served: which model under which options, the
 * token, the digest. It is ours alone; a line that cannot be read counts as none. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/version.h"
#include "cluster/coord_private.h"
#include "kernels/kernels.h"

enum { MOST_LINES = 64, MOST_BYTES = 1 << 16 };

static const char file_name[] = "canary";

/* Which model under which options. */
static mxd_rc fill_key(mxd_cluster *c, mxd_err *err) {
    uint8_t text[128 + 32], sum[32];
    int len = snprintf((char *)text, 128, "%s numerics %d activations %d kv %d ", MXD_VERSION,
                       MXD_NUMERICS, (int)c->welcome.activations, c->welcome.kv);
    if (mxd_weights_known(c->welcome.weights_id))
        memcpy(text + len, c->welcome.weights_id, 32);
    else
        MXD_TRY(mxd_weights_id(c->al, c->opts.folder, text + len, err));
    if (!mxd_weights_sum(text, (size_t)len + 32, sum))
        return mxd_fail(err, MXD_E_INTERNAL, "SHA-256 failed");
    for (int i = 0; i < 32; i++) snprintf(c->canary_key + 2 * i, 3, "%02x", sum[i]);
    return MXD_OK;
}

/* ------------------------------------------------------------------------------------- the file */

static char *read_lines(mxd_cluster *c) {
    char path[MXD_PATH_MAX], *text = NULL;
    if (mxd_path_join(path, c->opts.state_dir, file_name, NULL) != MXD_OK) return NULL;
    return mxd_file_read(c->al, path, MOST_BYTES, &text, NULL, NULL) == MXD_OK ? text : NULL;
}

static bool read_line(const char *line, const char *key, mxd_core_canary *out) {
    char *end;
    size_t n = strlen(key);
    if (strncmp(line, key, n) != 0 || line[n] != ' ') return false;
    long token = strtol(line + n + 1, &end, 10);
    if (*end != ' ' || token < 0 || token > INT32_MAX) return false;
    out->token = (int32_t)token;
    out->digest = strtoull(end + 1, &end, 16);
    out->known = *end == '\n' || !*end;
    return out->known;
}

void mxd_coord_canary_open(mxd_cluster *c) {
    mxd_err err = {0};
    if (!c->opts.state_dir) return;
    if (fill_key(c, &err) != MXD_OK) {
        mxd_log(MXD_LOG_WARN, "canary_not_known", "error=\"%s\"", err.msg);
        c->canary_key[0] = '\0';
        return;
    }
    char *text = read_lines(c);
    for (const char *p = text; p && *p && !read_line(p, c->canary_key, &c->canary);) {
        p = strchr(p, '\n');
        if (p) p++;
    }
    mxd_free(c->al, text);
}

/* The newest line first, and no more than a page of them. */
void mxd_coord_canary_keep(mxd_cluster *c, const mxd_core_canary *answer) {
    mxd_err err = {0};
    mxd_buf out;
    if (!c->canary_key[0]) return;
    char *text = read_lines(c);
    mxd_buf_init(&out, c->al, MOST_BYTES);
    mxd_buf_printf(&out, "%s %d %016" PRIx64 "\n", c->canary_key, (int)answer->token,
                   answer->digest);
    const char *p = text;
    for (int i = 1; p && *p && i < MOST_LINES; i++) {
        size_t n = strcspn(p, "\n");
        mxd_buf_printf(&out, "%.*s\n", (int)n, p);
        p += n + (p[n] == '\n');
    }
    mxd_rc rc = mxd_buf_rc(&out, "canary", &err);
    if (!rc) rc = mxd_folder_make(c->opts.state_dir, &err);
    if (!rc) rc = mxd_file_replace(c->opts.state_dir, file_name, mxd_buf_str(&out), out.len, &err);
    if (rc) mxd_log(MXD_LOG_WARN, "canary_not_kept", "error=\"%s\"", err.msg);
    mxd_buf_deinit(&out);
    mxd_free(c->al, text);
}
