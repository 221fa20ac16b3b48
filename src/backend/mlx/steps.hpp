// steps.hpp - memory of sequences, and the life of a step: setup, begin, output, end.
//
//   KV     One array per layer for K and one for V, one row per position. A page gets a place in
//          them when a sequence first reaches it, and the arrays grow by half when the places run
//          out, so a long --ctx-size costs nothing until it is used. A write is a scatter of rows.
//          The old array has no other user by then, so libmlx writes in place.
//   state  Recurrent state is an array of its own for each layer and sequence, absent while it is
//          zero, and never written to: a step makes new ones, which count from its end if nothing
//          failed. So a step can be repeated, and a copy is a second name.
#ifndef MXD_BACKEND_MLX_STEPS_HPP
#define MXD_BACKEND_MLX_STEPS_HPP

#include "backend/mlx/engine.hpp"

namespace mlxd {

constexpr unsigned trim_every = 256; // steps: freed buffers of every context length pile up
constexpr int first_pages = 8;       // of KV arrays that grow

// --------------------------------------------------------------------------------------- setup

inline uint64_t state_bytes(const mxd_state_spec &s) { // of one sequence
    if (!s.channels) return 0;
    return 4 * (static_cast<uint64_t>(s.channels) * static_cast<uint64_t>(s.conv - 1) +
                static_cast<uint64_t>(s.n_heads) * static_cast<uint64_t>(s.d_v) *
                    static_cast<uint64_t>(s.d_k));
}

inline mxd_rc check_layers(const engine &e, const mxd_step_shape &s, mxd_err *err) {
    for (int i = 0; i < s.n_layers; i++) {
        const mxd_kv_spec &kv = s.kv[i];
        if (kv.n_kv < 0 || kv.n_kv > MXD_MAX_HEADS || kv.head_dim < 0 ||
            kv.head_dim > MXD_MAX_HEAD_DIM || kv.v_dim < 0 || kv.v_dim > MXD_MAX_HEAD_DIM ||
            (kv.n_kv && kv.head_dim < 1) || (kv.latent && kv.v_dim > kv.head_dim))
            return e.host->fail(err, MXD_E_INVAL, "layer %d: %d KV heads of %d and %d", i, kv.n_kv,
                                kv.head_dim, kv.v_dim);
        if (!s.n_states || !s.state[i].channels) continue;
        const mxd_state_spec &st = s.state[i];
        if (st.channels < 1 || st.channels > (1 << 24) || st.conv < 1 || st.conv > MXD_MAX_CONV ||
            st.n_heads < 1 || st.n_heads > MXD_MAX_HEADS || st.d_v < 1 ||
            st.d_v > MXD_MAX_HEAD_DIM || st.d_k < 1 || st.d_k > MXD_MAX_HEAD_DIM)
            return e.host->fail(err, MXD_E_INVAL,
                                "layer %d: recurrent state of %d channels over %d, %d heads of "
                                "[%d, %d]",
                                i, st.channels, st.conv, st.n_heads, st.d_v, st.d_k);
    }
    return MXD_OK;
}

inline mxd_rc check_step_shape(const engine &e, const mxd_step_shape &s, mxd_err *err) {
    if (s.max_rows < 1 || s.max_rows > MXD_MAX_STEP_TOKENS || s.n_regs < 1 ||
        s.n_regs > MXD_MAX_REGS || s.n_layers < 0 || s.n_layers > MXD_MAX_LAYERS ||
        s.max_context < 1 || s.max_context > MXD_MAX_CONTEXT || s.n_pages < 0 || s.n_states < 0 ||
        s.n_states > (1 << 16))
        return e.host->fail(err, MXD_E_INVAL,
                            "%d rows, %d registers, %d layers, %d pages, %d states", s.max_rows,
                            s.n_regs, s.n_layers, s.n_pages, s.n_states);
    return check_layers(e, s, err);
}

// Everything that steps may come to need must fit, although little of it is taken now.
inline mxd_rc check_room(const engine &e, const mxd_step_shape &s, mxd_err *err) {
    uint64_t want = 0, states = 0;
    for (int i = 0; i < s.n_layers; i++) {
        const mxd_kv_spec &kv = s.kv[i];
        int v = kv.latent ? 0 : kv.v_dim ? kv.v_dim : kv.head_dim;
        want += static_cast<uint64_t>(kv.n_kv) * static_cast<uint64_t>(kv.head_dim + v) *
                (e.kv_f32 ? 4 : 2);
        if (s.n_states) states += state_bytes(s.state[i]) * static_cast<uint64_t>(s.n_states);
    }
    uint64_t rows = static_cast<uint64_t>(s.n_pages) * page_tokens;
    uint64_t limit = mx::get_memory_limit(), used = mx::get_active_memory();
    uint64_t room = limit > used ? limit - used : 0;
    if (states > room)
        return e.host->fail(
            err, MXD_E_NOFIT,
            "recurrent state: %d sequences of %llu bytes, MLX has %llu bytes left; "
            "lower --parallel",
            s.n_states, static_cast<unsigned long long>(states) / static_cast<unsigned>(s.n_states),
            static_cast<unsigned long long>(room));
    room -= states;
    if (rows > INT32_MAX || (want && rows > room / want))
        return e.host->fail(
            err, MXD_E_NOFIT,
            "KV cache: %llu positions of %llu bytes, MLX has %llu bytes left; lower "
            "--ctx-size or --parallel",
            static_cast<unsigned long long>(rows), static_cast<unsigned long long>(want),
            static_cast<unsigned long long>(room));
    return MXD_OK;
}

inline mxd_rc set_up(engine &e, const mxd_step_shape &s, mxd_err *err) {
    if (mxd_rc rc = check_step_shape(e, s, err)) return rc;
    if (mxd_rc rc = check_room(e, s, err)) return rc;
    e.spans.clear(); // the files may be closed from now on
    e.max_rows = s.max_rows;
    e.max_context = s.max_context;
    e.width.assign(s.reg_width, s.reg_width + s.n_regs);
    e.reg.assign(static_cast<size_t>(s.n_regs), std::nullopt);
    e.place.assign(static_cast<size_t>(s.n_pages), -1);
    e.n_states = s.n_states;
    for (int i = 0; i < s.n_layers; i++) {
        const mxd_kv_spec &kv = s.kv[i];
        e.kv.push_back(
            {kv.n_kv, kv.head_dim, kv.v_dim ? kv.v_dim : kv.head_dim, kv.latent, {}, {}});
        if (s.n_states)
            e.states.push_back(
                {s.state[i], std::vector<seq_state>(static_cast<size_t>(s.n_states))});
    }
    return MXD_OK;
}

inline mxd_rc op_setup(mxd_backend *b, const mxd_step_shape *shape, mxd_err *err) {
    return guarded(self(b)->host, err, "setup", [&] { return set_up(*self(b), *shape, err); });
}

inline uint64_t op_bytes(const mxd_backend *b) {
    const engine *e = static_cast<const engine *>(b);
    uint64_t all = sizeof *e + e->held;
    for (const layer_state &l : e->states)
        for (const seq_state &s : l.seq)
            if (s.s) all += state_bytes(l.spec); // copies that share memory count twice
    uint64_t freed = 0; // scratch of earlier steps, kept by libmlx for the next one
    (void)guarded(e->host, nullptr, "bytes",
                  [&] { return freed = mx::get_cache_memory(), MXD_OK; });
    return all + freed;
}

// ------------------------------------------------------------------------------------ KV memory

// The array with room for `pages`. What it held stays whole if there is no memory for more.
inline void grow(engine &e, std::optional<array> &kv, int pages, int width) {
    int rows = pages * page_tokens, had = kv ? kv->shape(0) : 0;
    if (had >= rows) return;
    array more = mx::zeros({rows - had, width}, e.kv_f32 ? mx::float32 : mx::float16, e.stream);
    array all = kv ? mx::concatenate({*kv, more}, 0, e.stream) : more;
    all.eval();
    e.held += all.nbytes() - (kv ? kv->nbytes() : 0);
    kv = std::move(all);
}

inline void grow_kv(engine &e) {
    if (e.n_placed <= e.kv_pages) return;
    int n_pages = static_cast<int>(e.place.size());
    int pages = std::max({e.n_placed, first_pages, e.kv_pages + e.kv_pages / 2});
    pages = std::min(pages, n_pages);
    for (layer_kv &l : e.kv) {
        if (!l.n_kv) continue;
        grow(e, l.k, pages, l.n_kv * l.head_dim);
        if (!l.latent) grow(e, l.v, pages, l.n_kv * l.v_dim);
    }
    e.kv_pages = pages;
    mx::clear_cache(); // arrays of the old size are of no use to anyone
}

// Where positions [0, len) of a run lie in the KV arrays; false when a page is out of range, which
// libmlx would not notice.
inline bool kv_rows(engine &e, const mxd_run &r, int len, std::vector<int32_t> *out) {
    for (int p = 0; p < len; p++) {
        int page = r.pages[p / page_tokens];
        if (page < 0 || static_cast<size_t>(page) >= e.place.size()) return false;
        int32_t &at = e.place[static_cast<size_t>(page)];
        if (at < 0) at = e.n_placed++;
        out->push_back(at * page_tokens + p % page_tokens);
    }
    return true;
}

// --------------------------------------------------------------------------------------- steps

inline mxd_rc begin_run(engine &e, const mxd_run &r, std::vector<int32_t> *slots) {
    run_index run = {r.row0, r.n, r.pos0, r.state, {}};
    if (e.n_states && (r.state < 0 || r.state >= e.n_states))
        return fail_step(e, MXD_E_INVAL, "recurrent state out of range");
    if (!e.place.empty()) {
        std::vector<int32_t> rows;
        if (!kv_rows(e, r, r.pos0 + r.n, &rows))
            return fail_step(e, MXD_E_INVAL, "KV page out of range");
        slots->insert(slots->end(), rows.begin() + r.pos0, rows.end());
        run.rows = array(rows.begin(), {static_cast<int>(rows.size())}, mx::int32);
    }
    e.runs.push_back(std::move(run));
    return MXD_OK;
}

inline mxd_rc begin_step(engine &e) {
    const mxd_batch &b = *e.batch;
    if (e.broken)
        return fail_step(
            e, MXD_E_INTERNAL,
            "MLX failed in an earlier step and its KV cache is lost: restart the node");
    if (b.n_rows < 1 || b.n_rows > e.max_rows) return fail_step(e, MXD_E_INVAL, "rows of a step");
    std::vector<int32_t> positions, slots;
    for (int i = 0; i < b.n_runs; i++) {
        const mxd_run &r = b.runs[i];
        int len = r.pos0 + r.n;
        if (r.pos0 < 0 || r.n < 1 || len > e.max_context ||
            r.row0 != static_cast<int>(positions.size()))
            return fail_step(e, MXD_E_INVAL, "runs of a step do not fit each other");
        for (int p = r.pos0; p < len; p++) positions.push_back(p);
        if (mxd_rc rc = begin_run(e, r, &slots)) return rc;
    }
    if (static_cast<int>(positions.size()) != b.n_rows)
        return fail_step(e, MXD_E_INVAL, "runs of a step do not cover its rows");
    e.positions = array(positions.begin(), {b.n_rows}, mx::int32);
    if (!slots.empty()) e.slots = array(slots.begin(), {b.n_rows}, mx::int32);
    grow_kv(e);
    return MXD_OK;
}

inline void op_begin(mxd_backend *b, const mxd_batch *batch) {
    engine *e = self(b);
    e->batch = batch;
    e->failed = MXD_OK;
    e->err = {};
    record(b, "begin", begin_step);
}

inline void drop_graph(engine &e) {
    for (auto &r : e.reg) r.reset();
    e.runs.clear();
    e.angles.clear();
    e.positions.reset();
    e.slots.reset();
}

// Evaluates pending KV and states together with `wanted`; a failure leaves KV in an unknown state.
inline void evaluate(engine &e, std::vector<array> wanted) {
    for (const layer_kv &l : e.kv)
        for (const auto *kv : {&l.k, &l.v})
            if (*kv) wanted.push_back(**kv);
    for (const moved_state &m : e.moved)
        for (const auto *s : {&m.to.inputs, &m.to.s})
            if (*s) wanted.push_back(**s);
    e.broken = true;
    mx::eval(std::move(wanted));
    e.broken = false;
}

inline mxd_rc op_output(mxd_backend *b, int reg, float *out, mxd_err *err) {
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

inline void keep_states(engine &e) {
    for (moved_state &m : e.moved)
        e.states[static_cast<size_t>(m.layer)].seq[static_cast<size_t>(m.seq)] = std::move(m.to);
}

inline mxd_rc op_end(mxd_backend *b, mxd_err *err) {
    engine *e = self(b);
    drop_graph(*e);
    if (e->failed) e->moved.clear();
    if (!e->broken) {
        mxd_rc rc = guarded(e->host, &e->err, "step", [&] {
            evaluate(*e, {});
            if (++e->n_steps % trim_every == 0) mx::clear_cache();
            return MXD_OK;
        });
        if (!e->failed) e->failed = rc;
        if (!e->failed) keep_states(*e);
    }
    e->moved.clear();
    e->batch = nullptr;
    if (e->failed) e->host->fail(err, e->failed, "%s", e->err.msg);
    return e->failed;
}

// Between steps, with nobody to tell: a copy that cannot be made ends in a refusal of later steps.
inline void op_state_copy(mxd_backend *b, int to, int from) {
    engine *e = self(b);
    mxd_rc rc = guarded(e->host, nullptr, "state", [&] {
        for (layer_state &l : e->states)
            l.seq.at(static_cast<size_t>(to)) = l.seq.at(static_cast<size_t>(from));
        return MXD_OK;
    });
    if (rc) e->broken = true;
}

} // namespace mlxd

#endif
