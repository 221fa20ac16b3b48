// ops_rows.hpp - operations that see one row at a time.
#ifndef MXD_BACKEND_MLX_OPS_ROWS_HPP
#define MXD_BACKEND_MLX_OPS_ROWS_HPP

#include "backend/mlx/weights.hpp"

namespace mlxd {

inline mxd_rc embed_rows(engine &e, int dst, const mxd_weight &w) {
    const int32_t *ids = e.batch->ids;
    int n = e.batch->n_rows;
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= w.rows)
            return e.host->fail(&e.err, MXD_E_INVAL, "token id %d: the vocabulary has %d", ids[i],
                                w.rows);
    assign(e, dst, looked_up(e, w, array(ids, {n}, mx::int32)));
    return MXD_OK;
}

inline void op_embed(mxd_backend *b, int dst, const mxd_weight *w) {
    record(b, "embedding", [&](engine &e) { return embed_rows(e, dst, *w); });
}

inline void op_input(mxd_backend *b, int dst, const float *x) {
    record(b, "input", [&](engine &e) {
        int width = e.width.at(static_cast<size_t>(dst));
        assign(e, dst, array(x, {e.batch->n_rows, width}, mx::float32)); // copies
        return MXD_OK;
    });
}

inline void op_norm(mxd_backend *b, int dst, int src, const mxd_weight *w, float eps) {
    record(b, "norm", [&](engine &e) {
        array groups = groups_of(e, value(e, src), w->in);
        assign(e, dst, flat_rows(e, mx::fast::rms_norm(groups, w->w, eps, e.stream)));
        return MXD_OK;
    });
}

inline void op_unit_norm(mxd_backend *b, int dst, int src, int n, float eps) {
    record(b, "norm", [&](engine &e) {
        array groups = groups_of(e, value(e, src), n);
        assign(e, dst, flat_rows(e, mx::fast::rms_norm(groups, std::nullopt, eps, e.stream)));
        return MXD_OK;
    });
}

inline void op_linear(mxd_backend *b, int n, const int *dst, int src, const mxd_weight *const *w) {
    record(b, "linear", [&](engine &e) {
        array x = value(e, src);
        for (int i = 0; i < n; i++) assign(e, dst[i], product(e, x, *w[i]));
        return MXD_OK;
    });
}

inline void op_linear_heads(mxd_backend *b, int dst, int src, const mxd_weight *w) {
    record(b, "linear of heads", [&](engine &e) {
        array x = mx::swapaxes(groups_of(e, value(e, src), w->in), 0, 1, e.stream);
        assign(e, dst, flat_rows(e, mx::swapaxes(product(e, x, *w), 0, 1, e.stream)));
        return MXD_OK;
    });
}

inline array activated(const engine &e, const array &gate, const array &up, mxd_act_fn act) {
    const mx::Stream &s = e.stream;
    auto times = [&](const array &a, const array &b) { return mx::multiply(a, b, s); };
    switch (act) {
    case MXD_SILU:
        return times(times(gate, mx::sigmoid(gate, s)), up);
    case MXD_SIGMOID:
        return times(mx::sigmoid(gate, s), up);
    case MXD_GELU_TANH: {
        array cube = times(times(gate, gate), gate);
        array inner = times(mx::add(gate, times(cube, array(0.044715f)), s),
                            array(0.79788456080286535588f)); // sqrt(2 / pi)
        array half = times(gate, array(0.5f));
        return times(times(half, mx::add(mx::tanh(inner, s), array(1.0f), s)), up);
    }
    case MXD_SWIGLU_OAI: {
        array g = mx::minimum(gate, array(7.0f), s);
        array u = mx::clip(up, array(-7.0f), array(7.0f), s);
        array swish = times(g, mx::sigmoid(times(g, array(1.702f)), s));
        return times(swish, mx::add(u, array(1.0f), s));
    }
    case MXD_ACT_FN_COUNT:
        break;
    }
    throw std::logic_error("activation function " + std::to_string(static_cast<int>(act)));
}

inline void op_gated(mxd_backend *b, int dst, int gate, int up, mxd_act_fn act) {
    record(b, "gated", [&](engine &e) {
        assign(e, dst, activated(e, value(e, gate), value(e, up), act));
        return MXD_OK;
    });
}

inline void op_add(mxd_backend *b, int dst, int src) {
    record(b, "add", [&](engine &e) {
        assign(e, dst, mx::add(value(e, dst), value(e, src), e.stream));
        return MXD_OK;
    });
}

inline void op_pick(mxd_backend *b, int dst, int src, const int *rows, int n) {
    record(b, "pick", [&](engine &e) {
        const array &x = value(e, src);
        for (int i = 0; i < n; i++)
            if (rows[i] < 0 || rows[i] >= x.shape(0))
                return fail_step(e, MXD_E_INVAL, "picked row out of range");
        assign(e, dst, mx::take(x, array(rows, {n}, mx::int32), 0, e.stream));
        return MXD_OK;
    });
}

inline void op_scale(mxd_backend *b, int reg, float by) {
    record(b, "scale", [&](engine &e) {
        assign(e, reg, mx::multiply(value(e, reg), array(by), e.stream));
        return MXD_OK;
    });
}

inline void op_scale_by(mxd_backend *b, int reg, const mxd_weight *w) {
    record(b, "scale_by", [&](engine &e) {
        array groups = groups_of(e, value(e, reg), w->in);
        assign(e, reg, flat_rows(e, mx::multiply(groups, w->w, e.stream)));
        return MXD_OK;
    });
}

inline void op_softcap(mxd_backend *b, int reg, float c) {
    record(b, "softcap", [&](engine &e) {
        array t = mx::tanh(mx::divide(value(e, reg), array(c), e.stream), e.stream);
        assign(e, reg, mx::multiply(t, array(c), e.stream));
        return MXD_OK;
    });
}

inline void op_gate_rows(mxd_backend *b, int reg, int gate) {
    record(b, "gate_rows", [&](engine &e) {
        array share = mx::sigmoid(value(e, gate), e.stream);
        assign(e, reg, mx::multiply(value(e, reg), share, e.stream));
        return MXD_OK;
    });
}

inline void op_scale_positions(mxd_backend *b, int reg, float beta, int length) {
    record(b, "scale_positions", [&](engine &e) {
        if (length < 1) return fail_step(e, MXD_E_INVAL, "positions scaled by a length of 0");
        std::vector<float> by;
        for (int i = 0; i < e.batch->n_runs; i++) {
            const mxd_run &r = e.batch->runs[i];
            for (int p = r.pos0; p < r.pos0 + r.n; p++)
                by.push_back(
                    static_cast<float>(1 + static_cast<double>(beta) * std::log1p(p / length)));
        }
        array rows(by.begin(), {e.batch->n_rows, 1}, mx::float32);
        assign(e, reg, mx::multiply(value(e, reg), rows, e.stream));
        return MXD_OK;
    });
}

inline void op_split(mxd_backend *b, int first, int second, int src, int n, int a, int c) {
    record(b, "split", [&](engine &e) {
        array x = groups_of(e, value(e, src), a + c);
        if (x.shape(1) != n) return fail_step(e, MXD_E_INVAL, "split of another width");
        if (first >= 0) assign(e, first, flat_rows(e, part(e, x, 2, 0, a)));
        if (second >= 0) assign(e, second, flat_rows(e, part(e, x, 2, a, a + c)));
        return MXD_OK;
    });
}

inline void op_join(mxd_backend *b, int dst, int first, int second, int n, int a, int c) {
    record(b, "join", [&](engine &e) {
        array x = groups_of(e, value(e, first), a), y = groups_of(e, value(e, second), c);
        if (x.shape(1) != n || (y.shape(1) != n && y.shape(1) != 1))
            return fail_step(e, MXD_E_INVAL, "join of another width");
        y = mx::broadcast_to(y, {x.shape(0), n, c}, e.stream);
        assign(e, dst, flat_rows(e, mx::concatenate({x, y}, 2, e.stream)));
        return MXD_OK;
    });
}

} // namespace mlxd

#endif
