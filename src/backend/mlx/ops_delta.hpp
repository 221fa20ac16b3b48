// ops_delta.hpp - the gated delta rule (arXiv 2412.06464), in chunks.
//
// Position by position, a head does S = g S; d = beta (v - S k); S = S + d k^T; y = S q. Within a
// chunk that starts from S0, with G_t the product of g up to t and R_ti = G_t / G_i:
//   d_t = beta_t (v_t - G_t S0 k_t - sum_{i<t} R_ti (k_i . k_t) d_i)
// which is (I + A) D = beta (V - G K S0^T), A_ti = beta_t R_ti (k_i . k_t) below the diagonal. So
// D = U - W S0^T with U = (I + A)^-1 beta V and W = (I + A)^-1 beta G K, and only this and
//   Y = G Q S0^T + (R * Q K^T) D,  S = G_T S0 + sum_t R_Tt d_t k_t^T
// go from chunk to chunk; all else is done for all chunks at once. A decode step is a chunk of 1.
// R comes from sums of log g over (i, t], never from a quotient of two small products.
//
// Shapes: B sequences, H value heads, M chunks of T positions.
#ifndef MXD_BACKEND_MLX_OPS_DELTA_HPP
#define MXD_BACKEND_MLX_OPS_DELTA_HPP

#include "backend/mlx/weights.hpp"

namespace mlxd {

constexpr int longest_chunk = 64;

struct delta_input { // f32; positions behind the last real one change nothing
    array q, k;      // [B, H, M, T, d_k]
    array v;         // [B, H, M, T, d_v]
    array log_g;     // [B, H, M, T]
    array beta;      // [B, H, M, T, 1]
};

inline array lower(const engine &e, int n, int diagonal) { // bool [n, n], true on and below it
    return mx::astype(mx::tri(n, n, diagonal, mx::float32, e.stream), mx::bool_, e.stream);
}

// Blocks (2 j + 1, 2 j) of size m of a [N, T, T]: [N, T / 2m, m, m].
inline array below_diagonal(const engine &e, const array &a, int m) {
    int n = a.shape(0), t = a.shape(1), pairs = t / (2 * m);
    array x = mx::reshape(a, {n, pairs, 2, m, pairs, 2, m}, e.stream);
    x = part(e, part(e, x, 2, 1, 2), 5, 0, 1);
    x = mx::reshape(x, {n, pairs, m, pairs, m}, e.stream);
    return mx::transpose(mx::diagonal(x, 0, 1, 3, e.stream), {0, 3, 1, 2}, e.stream);
}

// (I + a)^-1 of a [..., T, T], zero on and above the diagonal, T a power of 2. Inverses of diagonal
// blocks are joined in pairs: [[P, 0], [B, Q]]^-1 = [[P', 0], [-Q' B P', Q']].
inline array unit_inverse(const engine &e, const array &a) {
    const mx::Stream &s = e.stream;
    int t = a.shape(-1);
    array flat = mx::reshape(a, {-1, t, t}, s);
    int n = flat.shape(0);
    array d = mx::ones({n, t, 1, 1}, mx::float32, s);
    for (int m = 1; m < t; m *= 2) {
        array pairs = mx::reshape(d, {n, t / (2 * m), 2, m, m}, s);
        array p = mx::squeeze(part(e, pairs, 2, 0, 1), 2, s);
        array q = mx::squeeze(part(e, pairs, 2, 1, 2), 2, s);
        array b = mx::negative(below_diagonal(e, flat, m), s);
        if (m > 1) b = mx::matmul(q, mx::matmul(b, p, s), s);
        array top = mx::concatenate({p, mx::zeros_like(p, s)}, -1, s);
        d = mx::concatenate({top, mx::concatenate({b, q}, -1, s)}, -2, s);
    }
    return mx::reshape(d, a.shape(), s);
}

// log R: sums of log g over (i, t] at [t, i], -inf where i > t. [B, H, M, T, T]
inline array log_ratios(const engine &e, const array &log_g) {
    const mx::Stream &s = e.stream;
    int t = log_g.shape(-1);
    array each = mx::expand_dims(log_g, -1, s); // of position t, for every i before it
    array sums = mx::cumsum(mx::where(lower(e, t, -1), each, array(0.0f), s), -2, false, true, s);
    return mx::where(lower(e, t, 0), sums, array(-INFINITY), s);
}

struct delta_output {
    array y; // [B, H, M, T, d_v]
    array s; // [B, H, d_v, d_k]
};

inline delta_output delta_rule(const engine &e, const delta_input &in, array state) {
    const mx::Stream &s = e.stream;
    auto times = [&](const array &a, const array &b) { return mx::multiply(a, b, s); };
    auto flip = [&](const array &a) { return mx::swapaxes(a, -1, -2, s); };
    int chunks = in.q.shape(2), t = in.q.shape(3);
    array ratio = mx::exp(log_ratios(e, in.log_g), s);
    array decay = mx::exp(mx::expand_dims(mx::cumsum(in.log_g, -1, false, true, s), -1, s), s);
    array u = times(in.beta, in.v), w = times(times(in.beta, decay), in.k);
    if (t > 1) {
        array a = times(times(in.beta, ratio), mx::matmul(in.k, flip(in.k), s));
        array inverse = unit_inverse(e, mx::where(lower(e, t, -1), a, array(0.0f), s));
        u = mx::matmul(inverse, u, s);
        w = mx::matmul(inverse, w, s);
    }
    array near = times(ratio, mx::matmul(in.q, flip(in.k), s));
    array far = times(in.q, decay);
    array left = times(in.k, flip(part(e, ratio, 3, t - 1, t))); // k_t R_Tt
    array last = part(e, decay, 3, t - 1, t);
    std::vector<array> y;
    for (int c = 0; c < chunks; c++) {
        auto at = [&](const array &x) { return mx::squeeze(part(e, x, 2, c, c + 1), 2, s); };
        array from = flip(state);
        array d = mx::subtract(at(u), mx::matmul(at(w), from, s), s);
        y.push_back(mx::add(mx::matmul(at(far), from, s), mx::matmul(at(near), d, s), s));
        state = mx::add(times(state, at(last)), mx::matmul(flip(d), at(left), s), s);
    }
    return {mx::stack(y, 2, s), state};
}

// ------------------------------------------------------------------------------- of a sequence

struct delta_group { // neighbouring runs of one length
    size_t first, count;
    int row0, n;
};

struct delta_layer {
    const mxd_delta_net &how;
    const mxd_state_spec &spec;
    std::vector<seq_state> &seq;
    int layer, channels;
};

// What every run of the group starts from, [B, shape...].
inline array stacked(const engine &e, const delta_layer &l, const delta_group &g,
                     std::optional<array> seq_state::*which, const Shape &shape) {
    std::vector<array> parts;
    for (size_t i = g.first; i < g.first + g.count; i++) {
        const run_index &r = e.runs[i];
        const std::optional<array> &has = l.seq[static_cast<size_t>(r.state)].*which;
        parts.push_back(r.pos0 && has ? *has : mx::zeros(shape, mx::float32, e.stream));
    }
    return mx::stack(parts, 0, e.stream);
}

// x [B, n, C] as all of q, all of k, all of v.
inline array in_order(const engine &e, const delta_layer &l, const array &x) {
    const mxd_delta_net &h = l.how;
    if (!h.by_key_head) return x;
    int b = x.shape(0), n = x.shape(1), group = l.channels / h.n_k;
    array heads = mx::reshape(x, {b, n, h.n_k, group}, e.stream);
    std::vector<array> parts;
    for (auto [from, to] : {std::pair{0, h.d_k}, {h.d_k, 2 * h.d_k}, {2 * h.d_k, group}})
        parts.push_back(mx::reshape(part(e, heads, 3, from, to), {b, n, -1}, e.stream));
    return mx::concatenate(parts, 2, e.stream);
}

// Each channel by itself over the last `conv` inputs, then silu.
// x [B, conv - 1 + n, C]: [B, n, C]
inline array convolved(const engine &e, const delta_layer &l, const array &x, int n) {
    const mx::Stream &s = e.stream;
    array by = mx::reshape(vector_of(l.how.conv_w, l.channels * l.how.conv),
                           {l.how.conv, l.channels}, s); // oldest first
    array y = mx::multiply(part(e, x, 1, 0, n), part(e, by, 0, 0, 1), s);
    for (int j = 1; j < l.how.conv; j++)
        y = mx::add(y, mx::multiply(part(e, x, 1, j, j + n), part(e, by, 0, j, j + 1), s), s);
    return mx::multiply(y, mx::sigmoid(y, s), s);
}

// x [B, n, heads * d] as [B, H, n, d], heads repeated up to H.
inline array heads_of(const engine &e, const array &x, int heads, int h) {
    array y = mx::reshape(x, {x.shape(0), x.shape(1), heads, -1}, e.stream);
    y = mx::transpose(y, {0, 2, 1, 3}, e.stream);
    return heads == h ? y : mx::repeat(y, h / heads, 1, e.stream);
}

inline array unit_heads(const engine &e, const array &x) { // x / sqrt(sum(x^2) + 1e-6)
    array sum = mx::sum(mx::square(x, e.stream), -1, true, e.stream);
    return mx::multiply(x, mx::rsqrt(mx::add(sum, array(1e-6f), e.stream), e.stream), e.stream);
}

inline int chunk_of(int n) { // the shortest power of 2 that holds n, or the longest chunk
    int t = 1;
    while (t < n && t < longest_chunk) t *= 2;
    return t;
}

// x [B, H, n, d] as [B, H, M, T, d], with zeros behind.
inline array in_chunks(const engine &e, const array &x, int t) {
    int n = x.shape(2), m = (n + t - 1) / t;
    array full = m * t == n ? x
                            : mx::pad(x, std::vector<int>{2}, Shape{0}, Shape{m * t - n},
                                      array(0.0f), "constant", e.stream);
    return mx::reshape(full, {x.shape(0), x.shape(1), m, t, x.shape(3)}, e.stream);
}

// From the convolved channels [B, n, C] and the rows' b and a, each [B, n, H].
inline delta_input delta_inputs(const engine &e, const delta_layer &l, const array &qkv,
                                const array &b, const array &a) {
    const mx::Stream &s = e.stream;
    const mxd_delta_net &h = l.how;
    int keys = h.n_k * h.d_k, t = chunk_of(qkv.shape(1));
    array q = unit_heads(e, heads_of(e, part(e, qkv, 2, 0, keys), h.n_k, h.n_v));
    array k = unit_heads(e, heads_of(e, part(e, qkv, 2, keys, 2 * keys), h.n_k, h.n_v));
    array v = heads_of(e, part(e, qkv, 2, 2 * keys, l.channels), h.n_v, h.n_v);
    q = mx::multiply(q, array(1.0f / std::sqrt(static_cast<float>(h.d_k))), s);
    array rate = mx::exp(vector_of(h.a_log, h.n_v), s);
    array step = mx::logaddexp(mx::add(a, vector_of(h.dt_bias, h.n_v), s), array(0.0f), s);
    array log_g = heads_of(e, mx::negative(mx::multiply(rate, step, s), s), h.n_v, h.n_v);
    array beta = heads_of(e, mx::sigmoid(b, s), h.n_v, h.n_v);
    return {in_chunks(e, q, t), in_chunks(e, k, t), in_chunks(e, v, t),
            mx::squeeze(in_chunks(e, log_g, t), -1, s), in_chunks(e, beta, t)};
}

// [B * n, H, d_v], from the registers x, b and a; notes what the states become.
inline array delta_of_group(engine &e, const delta_layer &l, const delta_group &g, const array &x,
                            const array &b, const array &a) {
    const mx::Stream &s = e.stream;
    const mxd_delta_net &h = l.how;
    int count = static_cast<int>(g.count), last = g.row0 + count * g.n;
    auto rows = [&](const array &r) {
        return mx::reshape(part(e, r, 0, g.row0, last), {count, g.n, r.shape(1)}, s);
    };
    array in = in_order(e, l, rows(x));
    if (h.conv > 1)
        in = mx::concatenate({stacked(e, l, g, &seq_state::inputs, {h.conv - 1, l.channels}), in},
                             1, s);
    array state = stacked(e, l, g, &seq_state::s, {h.n_v, h.d_v, h.d_k});
    delta_output out =
        delta_rule(e, delta_inputs(e, l, convolved(e, l, in, g.n), rows(b), rows(a)), state);
    for (int i = 0; i < count; i++) {
        auto own = [&](const array &all) {
            return mx::contiguous(mx::squeeze(part(e, all, 0, i, i + 1), 0, s), false, s);
        };
        seq_state to = {{}, own(out.s)};
        if (h.conv > 1) to.inputs = own(part(e, in, 1, g.n, g.n + h.conv - 1));
        e.moved.push_back({l.layer, e.runs[g.first + static_cast<size_t>(i)].state, to});
    }
    array y = mx::reshape(out.y, {count, h.n_v, -1, h.d_v}, s);
    y = mx::transpose(part(e, y, 2, 0, g.n), {0, 2, 1, 3}, s);
    return mx::reshape(y, {count * g.n, h.n_v, h.d_v}, s);
}

inline std::vector<delta_group> groups_of_runs(const engine &e) {
    std::vector<delta_group> groups;
    for (size_t i = 0; i < e.runs.size(); i++)
        if (groups.empty() || groups.back().n != e.runs[i].n)
            groups.push_back({i, 1, e.runs[i].row0, e.runs[i].n});
        else
            groups.back().count++;
    return groups;
}

inline mxd_rc delta_net(engine &e, int layer, int dst, int x, int z, int beta, int a,
                        const mxd_delta_net &h) {
    if (e.states.empty()) return fail_step(e, MXD_E_INVAL, "recurrent state was not set up");
    layer_state &state = e.states.at(static_cast<size_t>(layer));
    const mxd_state_spec &spec = state.spec;
    int channels = 2 * h.n_k * h.d_k + h.n_v * h.d_v;
    if (h.n_k < 1 || h.n_v % h.n_k || spec.channels != channels || spec.conv != h.conv ||
        spec.n_heads != h.n_v || spec.d_v != h.d_v || spec.d_k != h.d_k ||
        value(e, x).shape(0) != e.batch->n_rows)
        return fail_step(e, MXD_E_INVAL, "recurrent state of another shape");
    delta_layer l = {h, spec, state.seq, layer, channels};
    std::vector<array> parts;
    for (const delta_group &g : groups_of_runs(e))
        parts.push_back(delta_of_group(e, l, g, value(e, x), value(e, beta), value(e, a)));
    array y = parts.size() == 1 ? parts[0] : mx::concatenate(parts, 0, e.stream);
    y = mx::fast::rms_norm(y, vector_of(h.norm, h.d_v), h.eps, e.stream);
    const array &gate = value(e, z);
    array open = mx::multiply(gate, mx::sigmoid(gate, e.stream), e.stream);
    assign(e, dst, mx::multiply(flat_rows(e, y), open, e.stream));
    return MXD_OK;
}

inline void op_delta_net(mxd_backend *b, int layer, int dst, int x, int z, int beta, int a,
                         const mxd_delta_net *how) {
    record(b, "delta net",
           [&](engine &e) { return delta_net(e, layer, dst, x, z, beta, a, *how); });
}

} // namespace mlxd

#endif
