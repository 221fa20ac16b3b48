// ops_moe.hpp - a mixture of experts: routing, and the products of the chosen experts.
#ifndef MXD_BACKEND_MLX_OPS_MOE_HPP
#define MXD_BACKEND_MLX_OPS_MOE_HPP

#include "backend/mlx/ops_rows.hpp"

namespace mlxd {

constexpr int sort_from = 64; // pairs of a row and an expert: below, the sort costs more than it
                              // gives. mlx-lm has the same limit

struct routing {
    array chosen;  // u32 [rows, top_k]
    array weights; // f32 [rows, top_k]
};

// The n largest of every row of x, largest first, the lowest index of equal ones: the sort is
// stable, and the negated values ascend.
inline array largest(const engine &e, const array &x, int n) {
    array order = mx::argsort(mx::negative(x, e.stream), -1, e.stream);
    return mx::astype(part(e, order, -1, 0, n), mx::uint32, e.stream);
}

// Scores [rows, experts] where those outside of the topk_group best groups are 0.
inline array best_groups(const engine &e, const array &scores, const mxd_moe &h) {
    const mx::Stream &s = e.stream;
    int rows = scores.shape(0), size = h.n_experts / h.n_group;
    array groups = mx::reshape(scores, {rows, h.n_group, size}, s);
    array two = mx::take_along_axis(groups, largest(e, groups, std::min(2, size)), -1, s);
    array best = largest(e, mx::sum(two, -1, false, s), h.topk_group); // [rows, topk_group]
    array number = mx::reshape(mx::arange(0, h.n_group, mx::uint32, s), {1, h.n_group, 1}, s);
    array kept = mx::any(mx::equal(number, mx::expand_dims(best, 1, s), s), -1, true, s);
    return mx::reshape(mx::where(kept, groups, array(0.0f), s), {rows, h.n_experts}, s);
}

inline routing route(const engine &e, const array &logits, const mxd_moe &h) {
    const mx::Stream &s = e.stream;
    if (h.router == MXD_ROUTE_TOPK_SOFTMAX) {
        array chosen = largest(e, logits, h.top_k);
        array best = mx::take_along_axis(logits, chosen, -1, s);
        return {chosen, mx::softmax(best, -1, true, s)};
    }
    bool sigmoid = h.router == MXD_ROUTE_SIGMOID;
    array p = sigmoid ? mx::sigmoid(logits, s) : mx::softmax(logits, -1, true, s);
    array scores = p;
    if (sigmoid && h.correction) scores = mx::add(p, vector_of(h.correction, h.n_experts), s);
    if (sigmoid && h.n_group > 1) scores = best_groups(e, scores, h);
    array chosen = largest(e, scores, h.top_k);
    return {chosen, mx::take_along_axis(p, chosen, -1, s)};
}

inline routing routed(const engine &e, const array &logits, const mxd_moe &h) {
    const mx::Stream &s = e.stream;
    routing r = route(e, logits, h);
    if (h.norm_weights) {
        array all = mx::sum(r.weights, -1, true, s);
        r.weights = mx::divide(r.weights, mx::add(all, array(h.norm_eps), s), s);
    }
    if (h.weight_scale != 0 && h.weight_scale != 1)
        r.weights = mx::multiply(r.weights, array(h.weight_scale), s);
    if (h.expert_scale) {
        const array &by = vector_of(h.expert_scale, h.n_experts);
        r.weights = mx::multiply(r.weights, mx::take(by, r.chosen, 0, s), s);
    }
    return r;
}

// x [..., in] through experts `chosen`, with shapes as in expert_product.
inline array through_experts(const engine &e, const array &x, const array &chosen, bool sorted,
                             const mxd_moe &h) {
    array gate = expert_product(e, x, *h.gate, chosen, sorted);
    array up = expert_product(e, x, *h.up, chosen, sorted);
    return expert_product(e, activated(e, gate, up, h.act), *h.down, chosen, sorted);
}

// [rows, top_k, hidden]. Many pairs are sorted by expert, so that a matrix is read once for all.
inline array experts_of(const engine &e, const array &x, const array &chosen, const mxd_moe &h) {
    const mx::Stream &s = e.stream;
    int rows = x.shape(0), width = x.shape(1), pairs = rows * h.top_k;
    if (pairs < sort_from) {
        array in = mx::reshape(x, {rows, 1, 1, width}, s);
        return mx::squeeze(through_experts(e, in, chosen, false, h), 2, s);
    }
    array flat = mx::reshape(chosen, {pairs}, s);
    array order = mx::argsort(flat, 0, s), back = mx::argsort(order, 0, s);
    array from = mx::floor_divide(order, array(static_cast<uint32_t>(h.top_k)), s);
    array in = mx::expand_dims(mx::take(x, from, 0, s), 1, s);
    array y = through_experts(e, in, mx::take(flat, order, 0, s), true, h);
    return mx::reshape(mx::take(mx::squeeze(y, 1, s), back, 0, s), {rows, h.top_k, -1}, s);
}

inline mxd_rc check_moe(engine &e, const array &x, const array &logits, const mxd_moe &h) {
    bool fits = h.n_experts >= 1 && h.n_experts <= MXD_MAX_EXPERTS && h.top_k >= 1 &&
                h.top_k <= h.n_experts && logits.shape(1) == h.n_experts &&
                logits.shape(0) == x.shape(0);
    for (const mxd_weight *w : {h.gate, h.up, h.down}) fits = fits && w->experts == h.n_experts;
    fits = fits && h.gate->in == x.shape(1) && h.up->in == h.gate->in &&
           h.up->rows == h.gate->rows && h.down->in == h.gate->rows;
    if (h.router == MXD_ROUTE_SIGMOID && h.n_group > 1)
        fits =
            fits && h.n_experts % h.n_group == 0 && h.topk_group >= 1 && h.topk_group <= h.n_group;
    return fits ? MXD_OK : fail_step(e, MXD_E_INVAL, "experts that do not fit each other");
}

inline void op_moe(mxd_backend *b, int dst, int src, int logits, const mxd_moe *how) {
    record(b, "experts", [&](engine &e) {
        array x = value(e, src);
        if (mxd_rc rc = check_moe(e, x, value(e, logits), *how)) return rc;
        routing r = routed(e, value(e, logits), *how);
        array y = experts_of(e, x, r.chosen, *how);
        array share = mx::expand_dims(r.weights, -1, e.stream);
        assign(e, dst, mx::sum(mx::multiply(y, share, e.stream), 1, false, e.stream));
        return MXD_OK;
    });
}

} // namespace mlxd

#endif
