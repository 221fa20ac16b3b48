// ops_attend.hpp - rotation, writing K and V, attention over the pages.
#ifndef MXD_BACKEND_MLX_OPS_ATTEND_HPP
#define MXD_BACKEND_MLX_OPS_ATTEND_HPP

#include "backend/mlx/weights.hpp"

namespace mlxd {

// ------------------------------------------------------------------------------------- rotation

// The float whose reciprocal is nearest to f: fast::rope takes periods and divides again.
inline float period_of(float f) {
    float best = 1.0f / f;
    for (float p : {std::nextafter(best, 0.0f), std::nextafter(best, INFINITY)})
        if (std::fabs(1.0f / p - f) < std::fabs(1.0f / best - f)) best = p;
    return best;
}

inline const array &periods(engine &e, const mxd_rope &r) {
    for (const rope_freqs &f : e.freqs)
        if (f.inv_freq == r.inv_freq && f.periods.shape(0) == r.dims / 2) return f.periods;
    std::vector<float> p;
    for (int i = 0; i < r.dims / 2; i++) p.push_back(period_of(r.inv_freq[i]));
    array a(p.begin(), {r.dims / 2}, mx::float32);
    e.freqs.push_back({r.inv_freq, a});
    return e.freqs.back().periods;
}

// Cosines and sines of one position, beyond or within the context the frequencies were made for.
inline void angles_at(const mxd_rope &r, int position, std::vector<float> *cos,
                      std::vector<float> *sin) {
    const mxd_rope_dynamic &d = *r.dynamic;
    double n = position + 1, dims = r.dims;
    double base = n <= d.context ? 0
                                 : d.theta * std::pow(d.factor * n / d.context - (d.factor - 1),
                                                      dims / (dims - 2));
    for (int i = 0; i < r.dims / 2; i++) {
        float f =
            n <= d.context ? r.inv_freq[i] : static_cast<float>(std::pow(base, -2.0 * i / dims));
        float angle = static_cast<float>(position) * f;
        cos->push_back(static_cast<float>(std::cos(static_cast<double>(angle))));
        sin->push_back(static_cast<float>(std::sin(static_cast<double>(angle))));
    }
}

inline const rope_angles &dynamic_angles(engine &e, const mxd_rope &r) {
    for (const rope_angles &a : e.angles)
        if (a.rope == &r) return a;
    std::vector<float> cos, sin;
    for (int i = 0; i < e.batch->n_runs; i++) {
        const mxd_run &run = e.batch->runs[i];
        for (int p = run.pos0; p < run.pos0 + run.n; p++) angles_at(r, p, &cos, &sin);
    }
    Shape shape = {e.batch->n_rows, 1, r.dims / 2};
    e.angles.push_back(
        {&r, array(cos.begin(), shape, mx::float32), array(sin.begin(), shape, mx::float32)});
    return e.angles.back();
}

// x [rows, n_heads, head_dim], rotated by a table of angles instead of by frequencies.
inline array rotated(engine &e, const array &x, const mxd_rope &r) {
    const mx::Stream &s = e.stream;
    const rope_angles &by = dynamic_angles(e, r);
    int rows = x.shape(0), heads = x.shape(1), half = r.dims / 2;
    array turned = part(e, x, 2, 0, r.dims), rest = part(e, x, 2, r.dims, x.shape(2));
    int pair = r.interleaved ? 3 : 2; // the dimension whose two values are a pair
    array pairs = mx::reshape(
        turned, r.interleaved ? Shape{rows, heads, half, 2} : Shape{rows, heads, 2, half}, s);
    array a = mx::squeeze(part(e, pairs, pair, 0, 1), pair, s);
    array b = mx::squeeze(part(e, pairs, pair, 1, 2), pair, s);
    array left = mx::subtract(mx::multiply(a, by.cos, s), mx::multiply(b, by.sin, s), s);
    array right = mx::add(mx::multiply(b, by.cos, s), mx::multiply(a, by.sin, s), s);
    array y = mx::reshape(mx::stack({left, right}, pair, s), {rows, heads, r.dims}, s);
    return mx::concatenate({y, rest}, 2, s);
}

inline void op_rope(mxd_backend *b, int reg, int n_heads, int head_dim, const mxd_rope *r) {
    record(b, "rope", [&](engine &e) {
        array x = groups_of(e, value(e, reg), head_dim);
        if (x.shape(1) != n_heads || x.shape(0) != e.batch->n_rows)
            return fail_step(e, MXD_E_INVAL, "rotation of another shape");
        if (r->dynamic) {
            x = rotated(e, x, *r);
        } else { // a batch of one-token sequences, so that every row has its own position
            x = mx::fast::rope(mx::expand_dims(x, 2, e.stream), r->dims, r->interleaved,
                               std::nullopt, 1.0f, *e.positions, periods(e, *r), e.stream);
            x = mx::squeeze(x, 2, e.stream);
        }
        if (r->scale != 1.0f) {
            std::vector<float> by(static_cast<size_t>(head_dim), 1.0f);
            std::fill_n(by.begin(), r->dims, r->scale);
            x = mx::multiply(x, array(by.begin(), {head_dim}, mx::float32), e.stream);
        }
        assign(e, reg, flat_rows(e, x));
        return MXD_OK;
    });
}

// ------------------------------------------------------------------------------------------- KV

inline layer_kv &kv_of(engine &e, int layer) {
    layer_kv &l = e.kv.at(static_cast<size_t>(layer));
    if (!l.k) throw std::logic_error("layer " + std::to_string(layer) + " has no KV of its own");
    return l;
}

inline array written(const engine &e, const array &old, const array &rows) {
    array up = mx::reshape(mx::astype(rows, old.dtype(), e.stream),
                           {rows.shape(0), 1, rows.shape(1)}, e.stream);
    return mx::scatter(old, *e.slots, up, 0, e.stream);
}

inline void op_kv_append(mxd_backend *b, int layer, int k, int v) {
    record(b, "kv_append", [&](engine &e) {
        layer_kv &l = kv_of(e, layer);
        l.k = written(e, *l.k, value(e, k));
        if (!l.latent) l.v = written(e, *l.v, value(e, v));
        return MXD_OK;
    });
}

// The named positions of a sequence as [1, n_kv, n, dim] float32.
inline array gathered(const engine &e, int n_kv, const array &kv, const array &rows) {
    array x = mx::astype(mx::take(kv, rows, 0, e.stream), mx::float32, e.stream);
    x = mx::reshape(x, {1, rows.shape(0), n_kv, kv.shape(1) / n_kv}, e.stream);
    return mx::transpose(x, {0, 2, 1, 3}, e.stream);
}

// ------------------------------------------------------------------------------------ attention

// [n, len - first]: key j is visible from i when j <= i and i - j < window, if there is one.
inline array visible(const engine &e, const run_index &r, int first, int window) {
    int len = r.pos0 + r.n;
    array i = mx::reshape(mx::arange(r.pos0, len, mx::int32, e.stream), {r.n, 1}, e.stream);
    array j = mx::reshape(mx::arange(first, len, mx::int32, e.stream), {1, len - first}, e.stream);
    array back = mx::subtract(i, j, e.stream);
    array past = mx::greater_equal(back, array(0), e.stream);
    if (!window) return past;
    return mx::logical_and(past, mx::less(back, array(window), e.stream), e.stream);
}

// Scores go through c * tanh(s / c), which libmlx's own attention cannot do.
// q [1, n_heads, n, dim], k and v [1, n_kv, len, dim], mask [n, len]: [1, n_heads, n, v_dim].
inline array capped_attention(const engine &e, const array &q, const array &k, const array &v,
                              const array &mask, const mxd_attention &a,
                              const std::optional<array> &sinks) {
    const mx::Stream &s = e.stream;
    int n = q.shape(2), rep = a.n_heads / a.n_kv, len = k.shape(2);
    array grouped = mx::reshape(mx::multiply(q, array(a.scale), s), {a.n_kv, rep, n, -1}, s);
    array keys = mx::reshape(k, {a.n_kv, 1, len, -1}, s);
    array values = mx::reshape(v, {a.n_kv, 1, len, -1}, s);
    array scores = mx::matmul(grouped, mx::swapaxes(keys, -1, -2, s), s);
    array cap(a.softcap);
    scores = mx::multiply(mx::tanh(mx::divide(scores, cap, s), s), cap, s);
    scores = mx::where(mask, scores, array(-INFINITY), s);
    if (sinks) {
        array one = mx::reshape(*sinks, {a.n_kv, rep, 1, 1}, s);
        scores = mx::concatenate({scores, mx::broadcast_to(one, {a.n_kv, rep, n, 1}, s)}, -1, s);
    }
    array p = mx::softmax(scores, -1, true, s);
    if (sinks) p = part(e, p, -1, 0, len);
    return mx::reshape(mx::matmul(p, values, s), {1, a.n_heads, n, -1}, s);
}

inline array attend_run(const engine &e, const layer_kv &l, const run_index &r, const array &q,
                        const mxd_attention &a) {
    const mx::Stream &s = e.stream;
    int len = r.pos0 + r.n;
    int first = a.window && r.pos0 >= a.window ? r.pos0 - a.window + 1 : 0;
    array rows = first ? mx::slice(*r.rows, {first}, {len}, s) : *r.rows;
    array x = mx::reshape(part(e, q, 0, r.row0, r.row0 + r.n), {1, r.n, a.n_heads, a.head_dim}, s);
    x = mx::transpose(x, {0, 2, 1, 3}, s);
    array k = gathered(e, l.n_kv, *l.k, rows);
    array v = l.latent ? part(e, k, 3, 0, l.v_dim) : gathered(e, l.n_kv, *l.v, rows);
    std::optional<array> sinks, mask;
    if (a.sinks) sinks = vector_of(a.sinks, a.n_heads);
    array y = x;
    if (a.softcap > 0) {
        y = capped_attention(e, x, k, v, visible(e, r, first, a.window), a, sinks);
    } else {
        std::string mode = r.n > 1 ? "causal" : "";
        if (a.window && r.n > 1) {
            mode = "array";
            mask = visible(e, r, first, a.window);
        }
        y = mx::fast::scaled_dot_product_attention(x, k, v, a.scale, mode, mask, sinks, false, s);
    }
    return mx::reshape(mx::transpose(y, {0, 2, 1, 3}, s), {r.n, a.n_heads * l.v_dim}, s);
}

inline void op_attend(mxd_backend *b, int layer, int dst, int q, const mxd_attention *a) {
    record(b, "attention", [&](engine &e) {
        const layer_kv &l = kv_of(e, layer);
        if (a->n_kv != l.n_kv || a->head_dim != l.head_dim ||
            (a->v_dim ? a->v_dim : a->head_dim) != l.v_dim || a->n_heads % a->n_kv)
            return fail_step(e, MXD_E_INVAL, "attention to KV of another shape");
        std::vector<array> parts;
        for (const run_index &r : e.runs) parts.push_back(attend_run(e, l, r, value(e, q), *a));
        assign(e, dst, parts.size() == 1 ? parts[0] : mx::concatenate(parts, 0, e.stream));
        return MXD_OK;
    });
}

} // namespace mlxd

#endif
