// weights.hpp - reading weights from a model's files, and the products with them.
//
// Codes stay packed as in the file, in the layout quantized_matmul takes. Floats become float32
// (exactly): scales and biases of affine groups, vectors, and weights that are not quantised.
#ifndef MXD_BACKEND_MLX_WEIGHTS_HPP
#define MXD_BACKEND_MLX_WEIGHTS_HPP

#include "backend/mlx/engine.hpp"

namespace mlxd {

constexpr size_t band_bytes = 8 << 20; // read at once where columns are cut

struct extent { // of one dimension of a tensor: [from, from + n) of `full`
    int full, from, n;
};

struct reader {
    engine &e;
    const mxd_weight_src &src;
    mxd_err *err;

    mxd_rc check_shape(const mxd_st_tensor *t, const std::vector<extent> &dims) const {
        bool fits = static_cast<size_t>(t->n_dims) == dims.size();
        std::string want;
        for (size_t i = 0; i < dims.size(); i++) {
            fits = fits && t->shape[i] == static_cast<uint64_t>(dims[i].full);
            want += (i ? ", " : "") + std::to_string(dims[i].full);
        }
        return fits ? MXD_OK
                    : e.host->fail(err, MXD_E_FORMAT, "tensor '%s' does not have shape [%s]",
                                   t->name, want.c_str());
    }

    // What the tensor's shape must be: matrices one under the other have no dimension of their own.
    std::vector<extent> in_file(const std::vector<extent> &dims) const {
        if (!src.stacked || dims.size() < 3) return dims;
        return {{dims[0].full * dims[1].full, 0, 0}, dims[2]};
    }

    // Columns [from, from + n) of whole rows; all in bytes. dst [rows, n].
    mxd_rc read_columns(const mxd_st_tensor *t, uint64_t at, size_t rows, size_t row, size_t from,
                        size_t n, char *dst) const {
        if (n == row) return e.host->st_read(src.st, t, at, dst, rows * row, err);
        size_t band = std::clamp<size_t>(band_bytes / row, 1, rows);
        std::vector<char> whole(band * row);
        for (size_t r = 0; r < rows; r += band) {
            size_t some = std::min(band, rows - r);
            if (mxd_rc rc = e.host->st_read(src.st, t, at + r * row, whole.data(), some * row, err))
                return rc;
            for (size_t i = 0; i < some; i++)
                std::memcpy(dst + (r + i) * n, whole.data() + i * row + from, n);
        }
        return MXD_OK;
    }

    // A part of a tensor of 1 to 3 dimensions, of which the first is whole when there are 3.
    mxd_rc raw(const mxd_st_tensor *t, const std::vector<extent> &dims, mx::Dtype type,
               std::optional<array> *out) const {
        if (mxd_rc rc = check_shape(t, in_file(dims))) return rc;
        Shape shape;
        for (const extent &d : dims) shape.push_back(d.n);
        array a = mx::zeros(shape, type, e.stream);
        a.eval(); // has memory of its own now, which both sides can reach
        size_t item = a.itemsize(), n = dims.size();
        const extent one = {1, 0, 1}, &col = dims[n - 1], &row = n > 1 ? dims[n - 2] : one;
        size_t full_row = static_cast<size_t>(col.full) * item;
        size_t rows = static_cast<size_t>(row.n), cut = static_cast<size_t>(col.n) * item;
        for (int i = 0; i < (n > 2 ? dims[0].n : 1); i++) {
            uint64_t first = static_cast<uint64_t>(i) * static_cast<uint64_t>(row.full) +
                             static_cast<uint64_t>(row.from);
            if (mxd_rc rc = read_columns(t, first * full_row, rows, full_row,
                                         static_cast<size_t>(col.from) * item, cut,
                                         a.data<char>() + static_cast<size_t>(i) * rows * cut))
                return rc;
        }
        *out = std::move(a);
        return MXD_OK;
    }

    mxd_rc float_type(const mxd_st_tensor *t, mx::Dtype *out) const {
        if (t->dtype == MXD_DTYPE_F32) return *out = mx::float32, MXD_OK;
        if (t->dtype == MXD_DTYPE_F16) return *out = mx::float16, MXD_OK;
        if (t->dtype == MXD_DTYPE_BF16) return *out = mx::bfloat16, MXD_OK;
        return e.host->fail(err, MXD_E_UNSUPPORTED, "tensor '%s' is %s; wanted F16, BF16 or F32",
                            t->name, e.host->dtype_name(t->dtype));
    }

    // The same for floats of any kind, as float32.
    mxd_rc floats(const mxd_st_tensor *t, const std::vector<extent> &dims,
                  std::optional<array> *out) const {
        mx::Dtype type = mx::float32;
        if (mxd_rc rc = float_type(t, &type)) return rc;
        std::optional<array> a;
        if (mxd_rc rc = raw(t, dims, type, &a)) return rc;
        array f = mx::astype(*a, mx::float32, e.stream);
        f.eval();
        *out = std::move(f);
        return MXD_OK;
    }

    // The part of every matrix, in units of which a row has `in`, behind the dimension of experts.
    std::vector<extent> matrices(int in, int from, int n) const {
        std::vector<extent> d;
        if (src.experts) d.push_back({src.experts, 0, src.experts});
        d.push_back({src.out, src.row0, src.rows ? src.rows : src.out - src.row0});
        d.push_back({in, from, n});
        return d;
    }
};

// n floats in the file's order or column after column: the shape is not looked at, only how many
// there are.
inline mxd_rc load_vector(const reader &r, mxd_weight *w, std::optional<array> *data) {
    const mxd_weight_src &s = r.src;
    if (s.quant.mode != MXD_Q_NONE)
        return r.e.host->fail(r.err, MXD_E_UNSUPPORTED, "%s: a quantised vector", s.name);
    if (s.columns < 0 || (s.columns && s.in % s.columns))
        return r.e.host->fail(r.err, MXD_E_INVAL, "%s: %d numbers in %d columns", s.name, s.in,
                              s.columns);
    mxd_st_tensor flat = *s.weight;
    uint64_t n = 1;
    for (int i = 0; i < flat.n_dims; i++) n *= flat.shape[i];
    flat.n_dims = 1;
    flat.shape[0] = n;
    w->rows = 1;
    if (mxd_rc rc = r.floats(&flat, {{s.in, 0, s.in}}, data)) return rc;
    array v = **data;
    if (s.columns) {
        v = mx::transpose(mx::reshape(v, {s.in / s.columns, s.columns}, r.e.stream), r.e.stream);
        v = mx::reshape(v, {s.in}, r.e.stream);
    }
    if (s.add != 0) v = mx::add(v, array(s.add), r.e.stream);
    v.eval();
    *data = std::move(v);
    return MXD_OK;
}

struct mode_facts {
    const char *name; // as libmlx calls it
    int group, bits;  // 0: several
};

inline mode_facts mode_of(const mxd_quant &q) {
    switch (q.mode) {
    case MXD_Q_AFFINE:
        return {"affine", 0, 0};
    case MXD_Q_MXFP4:
        return {"mxfp4", 32, 4};
    case MXD_Q_MXFP8:
        return {"mxfp8", 32, 8};
    case MXD_Q_NVFP4:
        return {"nvfp4", 16, 4};
    case MXD_Q_NONE:
        break;
    }
    return {nullptr, 0, 0};
}

inline mxd_rc check_quant(const reader &r) {
    const mxd_weight_src &s = r.src;
    int bits = s.quant.bits, group = s.quant.group;
    mode_facts m = mode_of(s.quant);
    bool affine = s.quant.mode == MXD_Q_AFFINE;
    bool known =
        affine ? bits >= 2 && bits <= 8 && bits != 7 && (group == 32 || group == 64 || group == 128)
               : m.name && bits == m.bits && group == m.group;
    if (!known)
        return r.e.host->fail(r.err, MXD_E_UNSUPPORTED,
                              "%s: %d bits in groups of %d of this kind; MLX reads affine 2, 3, 4, "
                              "5, 6, 8 in 32, 64, 128, mxfp4 and mxfp8 in 32, nvfp4 in 16",
                              s.name, bits, group);
    if (!s.scales || affine != (s.biases != nullptr) || s.weight->dtype != MXD_DTYPE_U32 ||
        s.in % group || s.col0 % group || s.cols % group ||
        (!affine && s.scales->dtype != MXD_DTYPE_U8))
        return r.e.host->fail(
            r.err, MXD_E_FORMAT,
            "%s: needs U32 weights, %s, and columns (%d, from %d %d) in whole groups of %d", s.name,
            affine ? "scales and biases" : "U8 scales and no biases", s.in, s.col0, s.cols, group);
    return MXD_OK;
}

inline mxd_rc load_quantised(const reader &r, mxd_weight *w, std::optional<array> *data) {
    const mxd_weight_src &s = r.src;
    if (mxd_rc rc = check_quant(r)) return rc;
    auto words = [&](int n) {
        return static_cast<int>(static_cast<int64_t>(n) * s.quant.bits / 32);
    };
    int group = s.quant.group, in = s.cols ? s.cols : s.in - s.col0;
    if (mxd_rc rc =
            r.raw(s.weight, r.matrices(words(s.in), words(s.col0), words(in)), mx::uint32, data))
        return rc;
    std::vector<extent> groups = r.matrices(s.in / group, s.col0 / group, in / group);
    if (s.quant.mode != MXD_Q_AFFINE) return r.raw(s.scales, groups, mx::uint8, &w->scales);
    if (mxd_rc rc = r.floats(s.scales, groups, &w->scales)) return rc;
    return r.floats(s.biases, groups, &w->biases);
}

inline mxd_rc load_bias(const reader &r, mxd_weight *w) {
    std::vector<extent> dims = r.matrices(1, 0, 1);
    dims.pop_back();
    return r.floats(r.src.bias, dims, &w->bias);
}

inline mxd_rc check_part(const engine &e, const mxd_weight_src &s, mxd_err *err) {
    if (s.in < 1 || s.out < 1 || s.in > (1 << 24) || s.out > (1 << 28) || s.row0 < 0 ||
        s.rows < 0 || s.row0 >= s.out || s.rows > s.out - s.row0)
        return e.host->fail(err, MXD_E_INVAL, "%s: rows [%d, +%d) of [%d, %d]", s.name, s.row0,
                            s.rows, s.out, s.in);
    bool cut = s.col0 || s.cols;
    if (s.col0 < 0 || s.cols < 0 || s.col0 >= s.in || s.cols > s.in - s.col0 ||
        (cut && s.use != MXD_W_LOOKUP))
        return e.host->fail(err, MXD_E_INVAL, "%s: columns [%d, +%d) of [%d, %d]", s.name, s.col0,
                            s.cols, s.out, s.in);
    if (s.experts < 0 || s.experts > MXD_MAX_EXPERTS)
        return e.host->fail(err, MXD_E_INVAL, "%s: %d matrices", s.name, s.experts);
    if ((s.stacked || s.transposed) && (!s.experts || (s.transposed && s.bias)))
        return e.host->fail(err, MXD_E_INVAL, "%s: not a matrix that can be turned", s.name);
    return MXD_OK;
}

inline mxd_rc load_whole(engine &e, const mxd_weight_src &s, mxd_weight **out, mxd_err *err) {
    if (mxd_rc rc = check_part(e, s, err)) return rc;
    int rows = s.rows ? s.rows : s.out - s.row0, in = s.cols ? s.cols : s.in - s.col0;
    auto w = std::make_unique<mxd_weight>(mxd_weight{.use = s.use,
                                                     .rows = s.transposed ? in : rows,
                                                     .in = s.transposed ? rows : in,
                                                     .turned = s.transposed,
                                                     .experts = s.experts,
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
        rc = r.floats(s.weight, r.matrices(s.in, s.col0, in), &data);
    else
        rc = load_quantised(r, w.get(), &data);
    if (!rc && s.bias) rc = load_bias(r, w.get());
    if (rc) return rc;
    w->w = std::move(*data);
    for (const auto *a : {&w->scales, &w->biases, &w->bias}) e.held += *a ? (*a)->nbytes() : 0;
    e.held += w->w.nbytes();
    *out = w.get();
    e.weights.push_back(std::move(w));
    mx::clear_cache(); // the file's copy of the floats
    return MXD_OK;
}

// Every layer looks up its own columns of one table: they are read once, and each part is a view.
inline mxd_rc load_span(engine &e, const mxd_weight_src &s, const mxd_weight **out, mxd_err *err) {
    for (const table_span &t : e.spans)
        if (t.tensor == s.weight && t.from == s.span0 && t.n == s.span) return *out = t.all, MXD_OK;
    mxd_weight_src whole = s;
    whole.col0 = s.span0;
    whole.cols = s.span;
    mxd_weight *w = nullptr;
    if (mxd_rc rc = load_whole(e, whole, &w, err)) return rc;
    e.spans.push_back({s.weight, s.span0, s.span, w});
    *out = w;
    return MXD_OK;
}

inline mxd_rc load_part(engine &e, const mxd_weight_src &s, mxd_weight **out, mxd_err *err) {
    if (mxd_rc rc = check_part(e, s, err)) return rc;
    if (s.col0 < s.span0 || s.cols > s.span - (s.col0 - s.span0))
        return e.host->fail(err, MXD_E_INVAL, "%s: columns [%d, +%d) of a span [%d, +%d)", s.name,
                            s.col0, s.cols, s.span0, s.span);
    bool quantised = s.quant.mode != MXD_Q_NONE;
    if (quantised)
        if (mxd_rc rc = check_quant(reader{e, s, err})) return rc;
    const mxd_weight *all = nullptr;
    if (mxd_rc rc = load_span(e, s, &all, err)) return rc;
    auto w = std::make_unique<mxd_weight>(*all);
    auto columns = [&](const array &a, int each, int of) { // `each` units of a for `of` columns
        int64_t from = s.col0 - s.span0, to = from + s.cols;
        array view =
            part(e, a, 1, static_cast<int>(from * each / of), static_cast<int>(to * each / of));
        view.eval();
        return view;
    };
    w->in = s.cols;
    w->w = quantised ? columns(all->w, s.quant.bits, 32) : columns(all->w, 1, 1);
    if (all->scales) w->scales = columns(*all->scales, 1, s.quant.group);
    if (all->biases) w->biases = columns(*all->biases, 1, s.quant.group);
    *out = w.get();
    e.weights.push_back(std::move(w));
    return MXD_OK;
}

inline mxd_rc load_any(engine &e, const mxd_weight_src &s, mxd_weight **out, mxd_err *err) {
    return s.cols && s.span ? load_part(e, s, out, err) : load_whole(e, s, out, err);
}

inline mxd_rc op_load(mxd_backend *b, const mxd_weight_src *src, mxd_weight **out, mxd_err *err) {
    return guarded(self(b)->host, err, src->name,
                   [&] { return load_any(*self(b), *src, out, err); });
}

// ------------------------------------------------------------------------------------- products

// A vector of n floats that an operation was given.
inline const array &vector_of(const mxd_weight *w, int n) {
    if (!w || w->use != MXD_W_VECTOR || w->in != n)
        throw std::logic_error("a vector of " + std::to_string(n) + " was wanted");
    return w->w;
}

// A plain matrix as [..., in, rows].
inline array turned(const engine &e, const mxd_weight &w) {
    return w.turned ? w.w : mx::swapaxes(w.w, -1, -2, e.stream);
}

// x [..., rows, in] times the matrix, or [heads, rows, in] times the matrix of each head.
inline array product(const engine &e, const array &x, const mxd_weight &w) {
    array y = w.scales ? mx::quantized_matmul(x, w.w, *w.scales, w.biases, !w.turned, w.quant.group,
                                              w.quant.bits, mode_of(w.quant).name, e.stream)
                       : mx::matmul(x, turned(e, w), e.stream);
    if (!w.bias) return y;
    return mx::add(y, w.experts ? mx::expand_dims(*w.bias, 1, e.stream) : *w.bias, e.stream);
}

// x [pairs, 1, in] or [rows, top_k or 1, 1, in] times the matrices of the experts `chosen` [pairs]
// or [rows, top_k], sorted or not: [pairs, 1, out] or [rows, top_k, 1, out].
inline array expert_product(const engine &e, const array &x, const mxd_weight &w,
                            const array &chosen, bool sorted) {
    array y = w.scales ? mx::gather_qmm(x, w.w, *w.scales, w.biases, std::nullopt, chosen,
                                        !w.turned, w.quant.group, w.quant.bits,
                                        mode_of(w.quant).name, std::nullopt, sorted, e.stream)
                       : mx::gather_mm(x, turned(e, w), std::nullopt, chosen, sorted, e.stream);
    if (!w.bias) return y;
    return mx::add(y, mx::expand_dims(mx::take(*w.bias, chosen, 0, e.stream), -2, e.stream),
                   e.stream);
}

// Rows of the matrix by number.
inline array looked_up(const engine &e, const mxd_weight &w, const array &at) {
    array rows = mx::take(w.w, at, 0, e.stream);
    if (!w.scales) return rows;
    std::optional<array> biases;
    if (w.biases) biases = mx::take(*w.biases, at, 0, e.stream);
    return mx::dequantize(rows, mx::take(*w.scales, at, 0, e.stream), biases, w.quant.group,
                          w.quant.bits, mode_of(w.quant).name, std::nullopt, mx::float32, e.stream);
}

} // namespace mlxd

#endif
