// engine.hpp - the engine: what lives as long as the backend, what lives as long as a step, and how
// failures travel. Every other file of the plugin starts from here.
#ifndef MXD_BACKEND_MLX_ENGINE_HPP
#define MXD_BACKEND_MLX_ENGINE_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "mlx/mlx.h"
#include "mlx/version.h"

extern "C" {
#include "backend/mlx/plugin.h"
}

namespace mx = mlx::core;

struct mxd_weight {
    unsigned use;
    int rows, in; // of the part that was loaded, as the operations see it
    bool turned;  // w, scales and biases hold [in, rows]: a product takes them as they are
    int experts;  // matrices; 0: one, without a dimension of its own. Else w, scales, biases and
                  // bias have a dimension [experts] in front
    mxd_quant quant;
    mx::array w; // plain: f32 [rows, in]; vector: f32 [in]; else packed u32
    std::optional<mx::array> scales, biases; // [rows, in / group]: f32, or the bytes of fp modes
    std::optional<mx::array> bias;           // f32 [rows]
};

namespace mlxd {

using mx::array;
using mx::Shape;

constexpr int page_tokens = MXD_KV_PAGE_TOKENS;

struct table_span { // columns of a table that are loaded once and given out in parts
    const mxd_st_tensor *tensor;
    int from, n;
    const mxd_weight *all;
};

struct layer_kv { // rows of k and v: positions
    int n_kv, head_dim, v_dim;
    bool latent;            // no v
    std::optional<array> k; // [kv_pages * page, n_kv * head_dim]; none before the first page,
    std::optional<array> v; // [kv_pages * page, n_kv * v_dim]     or where n_kv is 0
};

struct seq_state {               // recurrent, of one layer and sequence; absent: zeros
    std::optional<array> inputs; // f32 [conv - 1, channels]
    std::optional<array> s;      // f32 [n_heads, d_v, d_k]
};

struct layer_state {
    mxd_state_spec spec;
    std::vector<seq_state> seq; // [n_states]
};

struct moved_state { // what a step made of a state; becomes the state when the step ends well
    int layer, seq;
    seq_state to;
};

struct run_index { // of this step
    int row0, n, pos0, state;
    std::optional<array> rows; // i32 [pos0 + n]: where each position lies in the KV arrays
};

struct rope_freqs { // of one table of the model
    const float *inv_freq;
    array periods; // f32 [dims / 2], what fast::rope takes
};

struct rope_angles { // of this step, for frequencies that depend on the position
    const mxd_rope *rope;
    array cos, sin; // f32 [n_rows, 1, dims / 2]
};

struct engine final : mxd_backend {
    const mxd_mlx_host *host;
    mx::Stream stream;
    bool kv_f32;
    uint64_t held = 0; // bytes of weights and KV
    std::vector<std::unique_ptr<mxd_weight>> weights;
    std::vector<table_span> spans; // until setup
    std::vector<std::optional<array>> reg;
    std::vector<int> width;
    std::vector<rope_freqs> freqs;
    int max_rows = 0, max_context = 0;
    bool broken = false;
    unsigned n_steps = 0;

    std::vector<layer_kv> kv;
    std::vector<int32_t> place; // [n_pages] where a page lies in the KV arrays; -1: nowhere yet
    int n_placed = 0, kv_pages = 0;
    std::vector<layer_state> states; // of every layer of the shard, or empty
    int n_states = 0;

    const mxd_batch *batch = nullptr; // of this step
    std::optional<array> positions;   // i32 [n_rows]
    std::optional<array> slots;       // i32 [n_rows]: rows of the KV arrays
    std::vector<run_index> runs;
    std::vector<rope_angles> angles;
    std::vector<moved_state> moved;
    mxd_rc failed = MXD_OK;
    mxd_err err{};

    engine(const mxd_mlx_host *h, mx::Stream s, bool f32)
        : mxd_backend{nullptr}, host(h), stream(s), kv_f32(f32) {}
};

inline engine *self(mxd_backend *b) { return static_cast<engine *>(b); }

// ------------------------------------------------------------------------------------- failures

inline mxd_rc caught(const mxd_mlx_host *host, mxd_err *err, const char *what, const char *why) {
    bool memory = std::strstr(why, "alloc") != nullptr;
    std::string line(why);
    for (char &c : line)
        if (c == '\n') c = ' ';
    return host->fail(err, memory ? MXD_E_NOMEM : MXD_E_INTERNAL, "%s: MLX: %s%s", what,
                      line.c_str(),
                      memory ? "; lower --ctx-size or --parallel, or use more nodes" : "");
}

template <typename F>
mxd_rc guarded(const mxd_mlx_host *host, mxd_err *err, const char *what, F &&f) noexcept {
    try {
        try {
            return f();
        } catch (const std::bad_alloc &) {
            return host->fail(err, MXD_E_NOMEM, "%s: out of memory", what);
        } catch (const std::exception &e) { return caught(host, err, what, e.what()); }
    } catch (...) { return host->fail(err, MXD_E_INTERNAL, "%s: MLX failed without a word", what); }
}

inline mxd_rc fail_step(engine &e, mxd_rc rc, const char *what) {
    return e.host->fail(&e.err, rc, "%s", what);
}

// An operation of the step: nothing after the first failure, which sticks.
template <typename F> void record(mxd_backend *b, const char *what, F &&f) noexcept {
    engine *e = self(b);
    if (!e->batch || e->failed) return;
    e->failed = guarded(e->host, &e->err, what, [&] { return f(*e); });
}

// ------------------------------------------------------------------------------------ registers

inline const array &value(const engine &e, int reg) {
    const auto &r = e.reg.at(static_cast<size_t>(reg));
    if (!r) throw std::logic_error("register " + std::to_string(reg) + " is read before written");
    return *r;
}

inline void assign(engine &e, int reg, array a) {
    auto &r = e.reg.at(static_cast<size_t>(reg));
    if (a.ndim() != 2 || a.shape(1) != e.width.at(static_cast<size_t>(reg)))
        throw std::logic_error("register " + std::to_string(reg) + " has another width");
    r = std::move(a);
}

// A register [rows, width] as [rows, width / n, n].
inline array groups_of(const engine &e, const array &x, int n) {
    if (n < 1 || x.shape(1) % n)
        throw std::logic_error("a row of " + std::to_string(x.shape(1)) + " in groups of " +
                               std::to_string(n));
    return mx::reshape(x, {x.shape(0), x.shape(1) / n, n}, e.stream);
}

inline array flat_rows(const engine &e, const array &x) { // [rows, ...] as a register
    return mx::reshape(x, {x.shape(0), -1}, e.stream);
}

// Values [from, to) of one dimension.
inline array part(const engine &e, const array &x, int axis, int from, int to) {
    Shape lo(static_cast<size_t>(x.ndim()), 0), hi = x.shape();
    size_t at = static_cast<size_t>(axis < 0 ? axis + static_cast<int>(x.ndim()) : axis);
    lo.at(at) = from;
    hi.at(at) = to;
    return mx::slice(x, lo, hi, e.stream);
}

} // namespace mlxd

#endif
