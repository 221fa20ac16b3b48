// mlx_plugin.cpp - the `mlx` backend: backend.h on top of libmlx. The one C++ file of the project.
//
// Operations append to a lazy graph; a register is the array it would hold. `output` evaluates the
// wanted register together with all KV writes, `end` evaluates KV that is still pending and drops
// the graph. What nobody asked for (the last layer of a prefill chunk without logits) is never
// computed.
//
//   numbers  Everything is float32: weights stay quantised with exact scales, activations are not
//            rounded, so results agree with the reference to float32 noise on every device.
//   KV       One array per layer for K and one for V, [n_pages * page, n_kv * head_dim]: position p
//            of a sequence is row pages[p / page] * page + p % page. A write is a scatter of rows.
//            The old array has no other user by then, so libmlx writes in place.
//   failure  A graph that cannot be built fails the step only. An evaluation that fails may have
//            taken KV of other sequences with it, so the backend refuses further steps.
//
// Trust:    as backend.h. No exception leaves this file.
// Threads:  the engine thread, which need not be the one that loaded: the stream belongs to none.
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
using mx::array;
using mx::Shape;

#define TEXT2(x)  #x
#define TEXT(x)   TEXT2(x)
#define BUILT_FOR TEXT(MLX_VERSION_MAJOR) "." TEXT(MLX_VERSION_MINOR) "." TEXT(MLX_VERSION_PATCH)

struct mxd_weight {
    unsigned use;
    int rows, in;
    mxd_quant quant;
    // of experts: w, scales and biases have a dimension [experts] in front
    array w;                             // plain: f32 [rows, in]; vector: f32 [in]; else packed u32
    std::optional<array> scales, biases; // f32 [rows, in / group]
    std::optional<array> bias;           // f32 [rows]
};

namespace {

constexpr int page_tokens = MXD_KV_PAGE_TOKENS;
constexpr unsigned trim_every = 256; // steps: freed buffers of every context length pile up

struct layer_kv {
    int n_kv, head_dim;
    array k, v;
};

struct run_index { // of this step
    int row0, n, pos0;
    array rows; // i32 [pos0 + n]: where each position lies in the KV arrays
};

struct rope_freqs { // of one table of the model
    const float *inv_freq;
    array periods; // f32 [dims / 2], what fast::rope takes
};

struct engine final : mxd_backend {
    const mxd_mlx_host *host;
    mx::Stream stream;
    bool kv_f32;
    uint64_t held = 0; // bytes of weights and KV
    std::vector<std::unique_ptr<mxd_weight>> weights;
    std::vector<layer_kv> kv;
    std::vector<std::optional<array>> reg;
    std::vector<int> width;
    std::vector<rope_freqs> freqs;
    int max_rows = 0, n_pages = 0, max_context = 0;
    bool broken = false;
    unsigned n_steps = 0;

    const mxd_batch *batch = nullptr; // of this step
    std::optional<array> positions;   // i32 [n_rows]
    std::optional<array> slots;       // i32 [n_rows]: rows of the KV arrays
    std::vector<run_index> runs;
    mxd_rc failed = MXD_OK;
    mxd_err err{};

    engine(const mxd_mlx_host *h, mx::Stream s, bool f32)
        : mxd_backend{nullptr}, host(h), stream(s), kv_f32(f32) {}
};

engine *self(mxd_backend *b) { return static_cast<engine *>(b); }

// ------------------------------------------------------------------------------------- failures

mxd_rc caught(const mxd_mlx_host *host, mxd_err *err, const char *what, const char *why) {
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

mxd_rc fail_step(engine *e, mxd_rc rc, const char *what) {
    return e->host->fail(&e->err, rc, "%s", what);
}

// An operation of the step: nothing after the first failure, which sticks.
template <typename F> void record(mxd_backend *b, const char *what, F &&f) noexcept {
    engine *e = self(b);
    if (!e->batch || e->failed) return;
    e->failed = guarded(e->host, &e->err, what, [&] { return f(*e); });
}

const array &value(const engine &e, int reg) {
    const auto &r = e.reg.at(static_cast<size_t>(reg));
    if (!r) throw std::logic_error("register " + std::to_string(reg) + " is read before written");
    return *r;
}

void assign(engine &e, int reg, array a) {
    auto &r = e.reg.at(static_cast<size_t>(reg));
    if (a.ndim() != 2 || a.shape(1) != e.width.at(static_cast<size_t>(reg)))
        throw std::logic_error("register " + std::to_string(reg) + " has another width");
    r = std::move(a);
}

// ------------------------------------------------------------------------------------- loading

bool float_type(mxd_dtype t, mx::Dtype *out) {
    if (t == MXD_DTYPE_F32) *out = mx::float32;
    if (t == MXD_DTYPE_F16) *out = mx::float16;
    if (t == MXD_DTYPE_BF16) *out = mx::bfloat16;
    return t == MXD_DTYPE_F32 || t == MXD_DTYPE_F16 || t == MXD_DTYPE_BF16;
}

struct reader {
    engine &e;
    const mxd_weight_src &src;
    mxd_err *err;

    // Rows [row0, row0 + shape[0]) of a tensor that must be [full0, shape[1] ...], as `type`.
    mxd_rc raw(const mxd_st_tensor *t, int full0, int row0, const Shape &shape, mx::Dtype type,
               std::optional<array> *out) const {
        bool fits = static_cast<size_t>(t->n_dims) == shape.size() &&
                    t->shape[0] == static_cast<uint64_t>(full0);
        for (size_t i = 1; fits && i < shape.size(); i++)
            fits = t->shape[i] == static_cast<uint64_t>(shape[i]);
        if (!fits)
            return e.host->fail(
                err, MXD_E_FORMAT, "tensor '%s' does not have shape [%d%s]", t->name, full0,
                t->n_dims == 1 ? "" : (", " + std::to_string(shape.back())).c_str());
        array a = mx::zeros(shape, type, e.stream);
        a.eval(); // has memory of its own now, which both sides can reach
        size_t row_bytes = a.nbytes() / static_cast<size_t>(shape[0]);
        mxd_rc rc = e.host->st_read(src.st, t, static_cast<uint64_t>(row0) * row_bytes,
                                    a.data<char>(), a.nbytes(), err);
        if (!rc) *out = std::move(a);
        return rc;
    }

    // The same for floats of any kind, as float32.
    mxd_rc floats(const mxd_st_tensor *t, int full0, int row0, const Shape &shape, float add,
                  std::optional<array> *out) const {
        mx::Dtype type = mx::float32;
        if (!float_type(t->dtype, &type))
            return e.host->fail(err, MXD_E_UNSUPPORTED,
                                "tensor '%s' is %s; wanted F16, BF16 or F32", t->name,
                                e.host->dtype_name(t->dtype));
        std::optional<array> a;
        if (mxd_rc rc = raw(t, full0, row0, shape, type, &a)) return rc;
        array f = mx::astype(*a, mx::float32, e.stream);
        if (add != 0) f = mx::add(f, array(add), e.stream);
        f.eval();
        *out = std::move(f);
        return MXD_OK;
    }
};

Shape shape_of(const mxd_weight_src &s, const mxd_weight &w, int columns) {
    return s.experts ? Shape{s.experts, w.rows, columns} : Shape{w.rows, columns};
}

mxd_rc load_vector(const reader &r, mxd_weight *w, std::optional<array> *data) {
    const mxd_weight_src &s = r.src;
    if (s.quant.mode != MXD_Q_NONE)
        return r.e.host->fail(r.err, MXD_E_UNSUPPORTED, "%s: a quantised vector", s.name);
    w->rows = 1;
    return r.floats(s.weight, s.in, 0, {s.in}, s.add, data);
}

mxd_rc load_affine(const reader &r, mxd_weight *w, std::optional<array> *data) {
    const mxd_weight_src &s = r.src;
    int bits = s.quant.bits, group = s.quant.group;
    if (s.quant.mode != MXD_Q_AFFINE || bits < 2 || bits == 7 || bits > 8 ||
        (group != 32 && group != 64 && group != 128))
        return r.e.host->fail(r.err, MXD_E_UNSUPPORTED,
                              "%s: %d bits in groups of %d of this kind; MLX reads affine 2, 3, 4, "
                              "5, 6, 8 in 32, 64, 128",
                              s.name, bits, group);
    if (!s.scales || !s.biases || s.weight->dtype != MXD_DTYPE_U32 || s.in % group)
        return r.e.host->fail(r.err, MXD_E_FORMAT,
                              "%s: needs U32 weights, scales and biases, and columns (%d) in whole "
                              "groups of %d",
                              s.name, s.in, group);
    int packed = static_cast<int>(static_cast<int64_t>(s.in) * bits / 32);
    int n = s.experts ? s.experts : s.out;
    Shape words = shape_of(s, *w, packed), groups = shape_of(s, *w, s.in / group);
    if (mxd_rc rc = r.raw(s.weight, n, s.row0, words, mx::uint32, data)) return rc;
    if (mxd_rc rc = r.floats(s.scales, n, s.row0, groups, 0, &w->scales)) return rc;
    return r.floats(s.biases, n, s.row0, groups, 0, &w->biases);
}

mxd_rc load_any(engine &e, const mxd_weight_src &s, mxd_weight **out, mxd_err *err) {
    if (s.in < 1 || s.out < 1 || s.in > (1 << 24) || s.out > (1 << 28) || s.row0 < 0 ||
        s.rows < 0 || s.row0 >= s.out || s.rows > s.out - s.row0)
        return e.host->fail(err, MXD_E_INVAL, "%s: rows [%d, +%d) of [%d, %d]", s.name, s.row0,
                            s.rows, s.out, s.in);
    if (s.experts < 0 || s.experts > MXD_MAX_EXPERTS ||
        (s.experts && (s.row0 || s.bias || (s.rows && s.rows != s.out))))
        return e.host->fail(err, MXD_E_UNSUPPORTED, "%s: experts in part, or with a bias", s.name);
    auto w = std::make_unique<mxd_weight>(mxd_weight{.use = s.use,
                                                     .rows = s.rows ? s.rows : s.out - s.row0,
                                                     .in = s.in,
                                                     .quant = s.quant,
                                                     .w = array(0.0f),
                                                     .scales = {},
                                                     .biases = {},
                                                     .bias = {}});
    reader r{e, s, err};
    std::optional<array> data;
    mxd_rc rc;
    if (s.use == MXD_W_VECTOR)
        rc = load_vector(r, w.get(), &data);
    else if (s.quant.mode == MXD_Q_NONE)
        rc = r.floats(s.weight, s.experts ? s.experts : s.out, s.row0, shape_of(s, *w, s.in), 0,
                      &data);
    else
        rc = load_affine(r, w.get(), &data);
    if (!rc && s.bias) rc = r.floats(s.bias, s.out, s.row0, {w->rows}, 0, &w->bias);
    if (rc) return rc;
    w->w = std::move(*data);
    for (const auto *a : {&w->scales, &w->biases, &w->bias}) e.held += *a ? (*a)->nbytes() : 0;
    e.held += w->w.nbytes();
    *out = w.get();
    e.weights.push_back(std::move(w));
    mx::clear_cache(); // the file's copy of the floats
    return MXD_OK;
}

mxd_rc mlx_load(mxd_backend *b, const mxd_weight_src *src, mxd_weight **out, mxd_err *err) {
    return guarded(self(b)->host, err, src->name,
                   [&] { return load_any(*self(b), *src, out, err); });
}

// --------------------------------------------------------------------------------------- setup

mxd_rc check_shape(const engine &e, const mxd_step_shape &s, mxd_err *err) {
    if (s.max_rows < 1 || s.max_rows > MXD_MAX_STEP_TOKENS || s.n_regs < 1 ||
        s.n_regs > MXD_MAX_REGS || s.n_layers < 0 || s.n_layers > MXD_MAX_LAYERS ||
        s.max_context < 1 || s.max_context > MXD_MAX_CONTEXT || s.n_pages < 0)
        return e.host->fail(err, MXD_E_INVAL, "%d rows, %d registers, %d layers, %d pages",
                            s.max_rows, s.n_regs, s.n_layers, s.n_pages);
    uint64_t want = 0;
    for (int i = 0; i < s.n_layers; i++)
        want += 2ull * static_cast<uint64_t>(s.kv[i].n_kv) *
                static_cast<uint64_t>(s.kv[i].head_dim) * (e.kv_f32 ? 4 : 2);
    uint64_t rows = static_cast<uint64_t>(s.n_pages) * page_tokens;
    uint64_t limit = mx::get_memory_limit(), used = mx::get_active_memory();
    uint64_t room = limit > used ? limit - used : 0;
    if (rows > INT32_MAX || (want && rows > room / want))
        return e.host->fail(
            err, MXD_E_NOFIT,
            "KV cache: %llu positions of %llu bytes, MLX has %llu bytes left; lower "
            "--ctx-size or --parallel",
            static_cast<unsigned long long>(rows), static_cast<unsigned long long>(want),
            static_cast<unsigned long long>(room));
    return MXD_OK;
}

mxd_rc set_up(engine &e, const mxd_step_shape &s, mxd_err *err) {
    if (mxd_rc rc = check_shape(e, s, err)) return rc;
    e.max_rows = s.max_rows;
    e.n_pages = s.n_pages;
    e.max_context = s.max_context;
    e.width.assign(s.reg_width, s.reg_width + s.n_regs);
    e.reg.assign(static_cast<size_t>(s.n_regs), std::nullopt);
    for (int i = 0; i < s.n_layers; i++) {
        Shape shape = {s.n_pages * page_tokens, s.kv[i].n_kv * s.kv[i].head_dim};
        mx::Dtype type = e.kv_f32 ? mx::float32 : mx::float16;
        array k = mx::zeros(shape, type, e.stream), v = mx::zeros(shape, type, e.stream);
        mx::eval(k, v);
        e.held += k.nbytes() + v.nbytes();
        e.kv.push_back({s.kv[i].n_kv, s.kv[i].head_dim, std::move(k), std::move(v)});
    }
    mx::clear_cache();
    return MXD_OK;
}

mxd_rc mlx_setup(mxd_backend *b, const mxd_step_shape *shape, mxd_err *err) {
    return guarded(self(b)->host, err, "setup", [&] { return set_up(*self(b), *shape, err); });
}

uint64_t mlx_bytes(const mxd_backend *b) {
    const engine *e = static_cast<const engine *>(b);
    uint64_t freed = 0; // scratch of earlier steps, kept by libmlx for the next one
    (void)guarded(e->host, nullptr, "bytes",
                  [&] { return freed = mx::get_cache_memory(), MXD_OK; });
    return sizeof *e + e->held + freed;
}

// --------------------------------------------------------------------------------------- steps

// Where positions [0, len) of a run lie in the KV arrays; false when a page is out of range, which
// libmlx would not notice.
bool kv_rows(const engine &e, const mxd_run &r, int len, std::vector<int32_t> *out) {
    for (int p = 0; p < len; p++) {
        int page = r.pages[p / page_tokens];
        if (page < 0 || page >= e.n_pages) return false;
        out->push_back(page * page_tokens + p % page_tokens);
    }
    return true;
}

mxd_rc begin_step(engine &e) {
    const mxd_batch &b = *e.batch;
    if (e.broken)
        return fail_step(
            &e, MXD_E_INTERNAL,
            "MLX failed in an earlier step and its KV cache is lost: restart the node");
    if (b.n_rows < 1 || b.n_rows > e.max_rows) return fail_step(&e, MXD_E_INVAL, "rows of a step");
    std::vector<int32_t> positions, slots;
    for (int i = 0; i < b.n_runs; i++) {
        const mxd_run &r = b.runs[i];
        int len = r.pos0 + r.n;
        if (r.pos0 < 0 || r.n < 1 || len > e.max_context ||
            r.row0 != static_cast<int>(positions.size()))
            return fail_step(&e, MXD_E_INVAL, "runs of a step do not fit each other");
        for (int p = r.pos0; p < len; p++) positions.push_back(p);
        if (e.kv.empty()) continue;
        std::vector<int32_t> rows;
        if (!kv_rows(e, r, len, &rows)) return fail_step(&e, MXD_E_INVAL, "KV page out of range");
        slots.insert(slots.end(), rows.begin() + r.pos0, rows.end());
        e.runs.push_back({r.row0, r.n, r.pos0, array(rows.begin(), {len}, mx::int32)});
    }
    if (static_cast<int>(positions.size()) != b.n_rows)
        return fail_step(&e, MXD_E_INVAL, "runs of a step do not cover its rows");
    e.positions = array(positions.begin(), {b.n_rows}, mx::int32);
    if (!slots.empty()) e.slots = array(slots.begin(), {b.n_rows}, mx::int32);
    return MXD_OK;
}

void mlx_begin(mxd_backend *b, const mxd_batch *batch) {
    engine *e = self(b);
    e->batch = batch;
    e->failed = MXD_OK;
    e->err = {};
    record(b, "begin", begin_step);
}

void drop_graph(engine &e) {
    for (auto &r : e.reg) r.reset();
    e.runs.clear();
    e.positions.reset();
    e.slots.reset();
}

// Evaluates pending KV together with `wanted`; a failure leaves KV in an unknown state.
void evaluate(engine &e, std::vector<array> wanted) {
    for (const layer_kv &l : e.kv) {
        wanted.push_back(l.k);
        wanted.push_back(l.v);
    }
    e.broken = true;
    mx::eval(std::move(wanted));
    e.broken = false;
}

mxd_rc mlx_output(mxd_backend *b, int reg, float *out, mxd_err *err) {
    engine *e = self(b);
    record(b, "step", [&](engine &s) {
        array a = mx::contiguous(value(s, reg), false, s.stream);
        evaluate(s, {a});
        std::memcpy(out, a.data<float>(), a.nbytes());
        return MXD_OK;
    });
    if (e->failed) e->host->fail(err, e->failed, "%s", e->err.msg);
    return e->failed;
}

mxd_rc mlx_end(mxd_backend *b, mxd_err *err) {
    engine *e = self(b);
    drop_graph(*e);
    if (!e->broken) {
        mxd_rc rc = guarded(e->host, &e->err, "step", [&] {
            evaluate(*e, {});
            if (++e->n_steps % trim_every == 0) mx::clear_cache();
            return MXD_OK;
        });
        if (!e->failed) e->failed = rc;
    }
    e->batch = nullptr;
    if (e->failed) e->host->fail(err, e->failed, "%s", e->err.msg);
    return e->failed;
}

// ---------------------------------------------------------------------------------- operations

mxd_rc embed_rows(engine &e, int dst, const mxd_weight &w) {
    const int32_t *ids = e.batch->ids;
    int n = e.batch->n_rows;
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= w.rows)
            return e.host->fail(&e.err, MXD_E_INVAL, "token id %d: the vocabulary has %d", ids[i],
                                w.rows);
    array at(ids, {n}, mx::int32);
    array rows = mx::take(w.w, at, 0, e.stream);
    if (w.scales)
        rows = mx::dequantize(rows, mx::take(*w.scales, at, 0, e.stream),
                              mx::take(*w.biases, at, 0, e.stream), w.quant.group, w.quant.bits,
                              "affine", std::nullopt, mx::float32, e.stream);
    assign(e, dst, rows);
    return MXD_OK;
}

void mlx_embed(mxd_backend *b, int dst, const mxd_weight *w) {
    record(b, "embedding", [&](engine &e) { return embed_rows(e, dst, *w); });
}

void mlx_input(mxd_backend *b, int dst, const float *x) {
    record(b, "input", [&](engine &e) {
        int width = e.width.at(static_cast<size_t>(dst));
        assign(e, dst, array(x, {e.batch->n_rows, width}, mx::float32)); // copies
        return MXD_OK;
    });
}

void mlx_norm(mxd_backend *b, int dst, int src, const mxd_weight *w, float eps) {
    record(b, "norm", [&](engine &e) {
        const array &x = value(e, src);
        Shape flat = x.shape();
        array groups = mx::reshape(x, {flat[0], flat[1] / w->in, w->in}, e.stream);
        array y = mx::fast::rms_norm(groups, w->w, eps, e.stream);
        assign(e, dst, mx::reshape(y, flat, e.stream));
        return MXD_OK;
    });
}

array product(const engine &e, const array &x, const mxd_weight &w) {
    array y = w.scales ? mx::quantized_matmul(x, w.w, *w.scales, w.biases, true, w.quant.group,
                                              w.quant.bits, "affine", e.stream)
                       : mx::matmul(x, mx::transpose(w.w, e.stream), e.stream);
    return w.bias ? mx::add(y, *w.bias, e.stream) : y;
}

void mlx_linear(mxd_backend *b, int n, const int *dst, int src, const mxd_weight *const *w) {
    record(b, "linear", [&](engine &e) {
        array x = value(e, src);
        for (int i = 0; i < n; i++) assign(e, dst[i], product(e, x, *w[i]));
        return MXD_OK;
    });
}

// The float whose reciprocal is nearest to f: fast::rope takes periods and divides again.
float period_of(float f) {
    float best = 1.0f / f;
    for (float p : {std::nextafter(best, 0.0f), std::nextafter(best, INFINITY)})
        if (std::fabs(1.0f / p - f) < std::fabs(1.0f / best - f)) best = p;
    return best;
}

const array &periods(engine &e, const mxd_rope &r) {
    for (const rope_freqs &f : e.freqs)
        if (f.inv_freq == r.inv_freq && f.periods.shape(0) == r.dims / 2) return f.periods;
    std::vector<float> p;
    for (int i = 0; i < r.dims / 2; i++) p.push_back(period_of(r.inv_freq[i]));
    array a(p.begin(), {r.dims / 2}, mx::float32);
    e.freqs.push_back({r.inv_freq, a});
    return e.freqs.back().periods;
}

void mlx_rope(mxd_backend *b, int reg, int n_heads, int head_dim, const mxd_rope *r) {
    record(b, "rope", [&](engine &e) {
        const array &flat = value(e, reg);
        int rows = flat.shape(0);
        // a batch of one-token sequences, so that every row has its own position
        array x = mx::reshape(flat, {rows, n_heads, 1, head_dim}, e.stream);
        array y = mx::fast::rope(x, r->dims, r->interleaved, std::nullopt, 1.0f, *e.positions,
                                 periods(e, *r), e.stream);
        if (r->scale != 1.0f) {
            std::vector<float> by(static_cast<size_t>(head_dim), 1.0f);
            std::fill_n(by.begin(), r->dims, r->scale);
            y = mx::multiply(y, array(by.begin(), {head_dim}, mx::float32), e.stream);
        }
        assign(e, reg, mx::reshape(y, {rows, n_heads * head_dim}, e.stream));
        return MXD_OK;
    });
}

array written(const engine &e, const array &old, const array &rows) {
    array up = mx::reshape(mx::astype(rows, old.dtype(), e.stream),
                           {rows.shape(0), 1, rows.shape(1)}, e.stream);
    return mx::scatter(old, *e.slots, up, 0, e.stream);
}

void mlx_kv_append(mxd_backend *b, int layer, int k, int v) {
    record(b, "kv_append", [&](engine &e) {
        layer_kv &l = e.kv.at(static_cast<size_t>(layer));
        l.k = written(e, l.k, value(e, k));
        l.v = written(e, l.v, value(e, v));
        return MXD_OK;
    });
}

// Positions [from, from + n) of a sequence as [1, n_kv, n, head_dim] float32.
array gathered(const engine &e, const layer_kv &l, const array &kv, const array &rows) {
    array x = mx::astype(mx::take(kv, rows, 0, e.stream), mx::float32, e.stream);
    x = mx::reshape(x, {1, rows.shape(0), l.n_kv, l.head_dim}, e.stream);
    return mx::transpose(x, {0, 2, 1, 3}, e.stream);
}

// [n, len - first]: key j is visible from i when j <= i and i - j < window.
array window_mask(const engine &e, const run_index &r, int first, int window) {
    int len = r.pos0 + r.n;
    array i = mx::reshape(mx::arange(r.pos0, len, mx::int32, e.stream), {r.n, 1}, e.stream);
    array j = mx::reshape(mx::arange(first, len, mx::int32, e.stream), {1, len - first}, e.stream);
    array back = mx::subtract(i, j, e.stream);
    return mx::logical_and(mx::greater_equal(back, array(0), e.stream),
                           mx::less(back, array(window), e.stream), e.stream);
}

array attend_run(const engine &e, const layer_kv &l, const run_index &r, const array &q,
                 const mxd_attention &a) {
    int len = r.pos0 + r.n, width = a.n_heads * a.head_dim;
    int first = a.window && r.pos0 >= a.window ? r.pos0 - a.window + 1 : 0;
    array rows = first ? mx::slice(r.rows, {first}, {len}, e.stream) : r.rows;
    array x = mx::slice(q, {r.row0, 0}, {r.row0 + r.n, width}, e.stream);
    x = mx::transpose(mx::reshape(x, {1, r.n, a.n_heads, a.head_dim}, e.stream), {0, 2, 1, 3},
                      e.stream);
    std::string mode = r.n > 1 ? "causal" : "";
    std::optional<array> mask;
    if (a.window && r.n > 1) {
        mode = "array";
        mask = window_mask(e, r, first, a.window);
    }
    array y = mx::fast::scaled_dot_product_attention(x, gathered(e, l, l.k, rows),
                                                     gathered(e, l, l.v, rows), a.scale, mode, mask,
                                                     std::nullopt, false, e.stream);
    return mx::reshape(mx::transpose(y, {0, 2, 1, 3}, e.stream), {r.n, width}, e.stream);
}

void mlx_attend(mxd_backend *b, int layer, int dst, int q, const mxd_attention *a) {
    record(b, "attention", [&](engine &e) {
        const layer_kv &l = e.kv.at(static_cast<size_t>(layer));
        std::vector<array> parts;
        for (const run_index &r : e.runs) parts.push_back(attend_run(e, l, r, value(e, q), *a));
        assign(e, dst, parts.size() == 1 ? parts[0] : mx::concatenate(parts, 0, e.stream));
        return MXD_OK;
    });
}

void mlx_gated(mxd_backend *b, int dst, int gate, int up, mxd_act_fn act) {
    record(b, "gated", [&](engine &e) {
        if (act != MXD_SILU) return fail_step(&e, MXD_E_UNSUPPORTED, "activation function");
        const array &g = value(e, gate);
        array silu = mx::multiply(g, mx::sigmoid(g, e.stream), e.stream);
        assign(e, dst, mx::multiply(silu, value(e, up), e.stream));
        return MXD_OK;
    });
}

void mlx_add(mxd_backend *b, int dst, int src) {
    record(b, "add", [&](engine &e) {
        assign(e, dst, mx::add(value(e, dst), value(e, src), e.stream));
        return MXD_OK;
    });
}

void mlx_pick(mxd_backend *b, int dst, int src, const int *rows, int n) {
    record(b, "pick", [&](engine &e) {
        const array &x = value(e, src);
        for (int i = 0; i < n; i++)
            if (rows[i] < 0 || rows[i] >= x.shape(0))
                return fail_step(&e, MXD_E_INVAL, "picked row out of range");
        assign(e, dst, mx::take(x, array(rows, {n}, mx::int32), 0, e.stream));
        return MXD_OK;
    });
}

// x [rows, 1 or top_k, 1, in] times the chosen experts' matrices: [rows, top_k, 1, out].
array expert_product(const engine &e, const array &x, const mxd_weight &w, const array &chosen) {
    if (w.scales)
        return mx::gather_qmm(x, w.w, *w.scales, w.biases, std::nullopt, chosen, true,
                              w.quant.group, w.quant.bits, "affine", std::nullopt, false, e.stream);
    return mx::gather_mm(x, mx::swapaxes(w.w, -1, -2, e.stream), std::nullopt, chosen, false,
                         e.stream);
}

array mixture(const engine &e, const array &x, const array &logits, const mxd_moe &h) {
    int rows = x.shape(0), width = x.shape(1);
    array p = mx::softmax(logits, -1, true, e.stream);
    array order = mx::argsort(mx::negative(p, e.stream), -1, e.stream);
    array chosen =
        mx::astype(mx::slice(order, {0, 0}, {rows, h.top_k}, e.stream), mx::uint32, e.stream);
    array share = mx::take_along_axis(p, chosen, -1, e.stream);
    if (h.norm_weights) share = mx::divide(share, mx::sum(share, -1, true, e.stream), e.stream);
    array in = mx::reshape(x, {rows, 1, 1, width}, e.stream);
    array gate = expert_product(e, in, *h.gate, chosen);
    array inner = mx::multiply(mx::multiply(gate, mx::sigmoid(gate, e.stream), e.stream),
                               expert_product(e, in, *h.up, chosen), e.stream);
    array y = mx::squeeze(expert_product(e, inner, *h.down, chosen), 2, e.stream);
    return mx::sum(mx::multiply(y, mx::expand_dims(share, -1, e.stream), e.stream), 1, false,
                   e.stream);
}

void mlx_moe(mxd_backend *b, int dst, int src, int logits, const mxd_moe *how) {
    record(b, "experts", [&](engine &e) {
        if (how->act != MXD_SILU) return fail_step(&e, MXD_E_UNSUPPORTED, "activation function");
        assign(e, dst, mixture(e, value(e, src), value(e, logits), *how));
        return MXD_OK;
    });
}

// ------------------------------------------------------------------------------------- opening

void mlx_close(mxd_backend *b) {
    engine *e = self(b);
    (void)guarded(e->host, nullptr, "close", [&] {
        delete e;
        mx::clear_cache();
        return MXD_OK;
    });
}

const mxd_backend_ops ops = {
    .name = "mlx",
    .determinism = "per-node",
    .close = mlx_close,
    .load = mlx_load,
    .setup = mlx_setup,
    .bytes = mlx_bytes,
    .begin = mlx_begin,
    .embed = mlx_embed,
    .input = mlx_input,
    .norm = mlx_norm,
    .linear = mlx_linear,
    .rope = mlx_rope,
    .kv_append = mlx_kv_append,
    .attend = mlx_attend,
    .gated = mlx_gated,
    .add = mlx_add,
    .pick = mlx_pick,
    .output = mlx_output,
    .end = mlx_end,
    .moe = mlx_moe,
};

mxd_rc open_engine(mxd_backend **out, const mxd_mlx_host *host, const mxd_backend_opts *opts,
                   mxd_err *err) {
    if (std::strncmp(mx::version(), BUILT_FOR, std::strlen(BUILT_FOR)) != 0)
        return host->fail(err, MXD_E_UNSUPPORTED,
                          "backend 'mlx': the plugin was built for MLX " BUILT_FOR
                          ", and MLX %s was found: rebuild it, or `pip install mlx==" BUILT_FOR "`",
                          mx::version());
    if (opts->kernels && std::strcmp(opts->kernels, "cpu") != 0)
        return host->fail(err, MXD_E_INVAL, "backend 'mlx': kernels '%s': only cpu can be forced",
                          opts->kernels);
    bool gpu = !opts->kernels && mx::is_available(mx::Device(mx::Device::gpu));
    mx::Stream stream =
        mx::new_thread_unsafe_stream(mx::Device(gpu ? mx::Device::gpu : mx::Device::cpu));
    auto *e = new engine(host, stream, opts->kv_f32);
    e->ops = &ops;
    *out = e;
    return MXD_OK;
}

mxd_rc plugin_open(mxd_backend **out, const mxd_mlx_host *host, const mxd_backend_opts *opts,
                   mxd_err *err) {
    return guarded(host, err, "backend 'mlx'", [&] { return open_engine(out, host, opts, err); });
}

const mxd_mlx_plugin plugin = {.built_for = BUILT_FOR, .open = plugin_open};

} // namespace

extern "C" __attribute__((visibility("default"))) uint32_t mxd_mlx_plugin_entry(
    uint32_t abi, const mxd_mlx_plugin **out) {
    if (abi == MXD_MLX_ABI) *out = &plugin;
    return MXD_MLX_ABI;
}
