// mlx_plugin.cpp - the `mlx` backend: backend.h on top of libmlx. The one C++ file of the project;
// the operations are in the headers beside it, by topic.
//
// Operations append to a lazy graph; a register is the array it would hold. `output` evaluates the
// wanted register together with all KV writes, `end` evaluates KV that is still pending and drops
// the graph. What nobody asked for (the last layer of a prefill chunk without logits) is never
// computed.
//
//   numbers  Everything is float32: weights stay quantised with exact scales, activations are not
//            rounded, so results agree with the reference to float32 noise on every device.
//   memory   steps.hpp: KV grows as it is used, recurrent state is replaced and never written to.
//   failure  A graph that cannot be built fails the step only. An evaluation that fails may have
//            taken KV of other sequences with it, so the backend refuses further steps.
//
// Trust:    as backend.h. No exception leaves this file.
// Threads:  the engine thread, which need not be the one that loaded: the stream belongs to none.
#include "backend/mlx/engine.hpp"
#include "backend/mlx/ops_attend.hpp"
#include "backend/mlx/ops_delta.hpp"
#include "backend/mlx/ops_moe.hpp"
#include "backend/mlx/ops_rows.hpp"
#include "backend/mlx/steps.hpp"
#include "backend/mlx/weights.hpp"

#define TEXT2(x)  #x
#define TEXT(x)   TEXT2(x)
#define BUILT_FOR TEXT(MLX_VERSION_MAJOR) "." TEXT(MLX_VERSION_MINOR) "." TEXT(MLX_VERSION_PATCH)

namespace {

using mlxd::engine;

// ------------------------------------------------------------------------------------- opening

void mlx_close(mxd_backend *b) {
    engine *e = mlxd::self(b);
    (void)mlxd::guarded(e->host, nullptr, "close", [&] {
        delete e;
        mx::clear_cache();
        return MXD_OK;
    });
}

const mxd_backend_ops ops = {
    .name = "mlx",
    .determinism = "per-node",
    .close = mlx_close,
    .load = mlxd::op_load,
    .setup = mlxd::op_setup,
    .bytes = mlxd::op_bytes,
    .begin = mlxd::op_begin,
    .embed = mlxd::op_embed,
    .input = mlxd::op_input,
    .norm = mlxd::op_norm,
    .linear = mlxd::op_linear,
    .rope = mlxd::op_rope,
    .kv_append = mlxd::op_kv_append,
    .attend = mlxd::op_attend,
    .gated = mlxd::op_gated,
    .add = mlxd::op_add,
    .pick = mlxd::op_pick,
    .output = mlxd::op_output,
    .end = mlxd::op_end,
    .moe = mlxd::op_moe,
    .unit_norm = mlxd::op_unit_norm,
    .scale = mlxd::op_scale,
    .scale_by = mlxd::op_scale_by,
    .softcap = mlxd::op_softcap,
    .gate_rows = mlxd::op_gate_rows,
    .scale_positions = mlxd::op_scale_positions,
    .split = mlxd::op_split,
    .join = mlxd::op_join,
    .linear_heads = mlxd::op_linear_heads,
    .delta_net = mlxd::op_delta_net,
    .state_copy = mlxd::op_state_copy,
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
    mxd_kv_type kv = mxd_kv_of(opts->kv, opts->activations);
    if (kv == MXD_KV_Q8)
        return host->fail(err, MXD_E_UNSUPPORTED,
                          "backend 'mlx' keeps K and V as float16 or float32, not in 8 bits: use "
                          "--cache-type f16, or --backend cpu");
    bool gpu = !opts->kernels && mx::is_available(mx::Device(mx::Device::gpu));
    mx::Stream stream =
        mx::new_thread_unsafe_stream(mx::Device(gpu ? mx::Device::gpu : mx::Device::cpu));
    auto *e = new engine(host, stream, kv == MXD_KV_F32);
    e->ops = &ops;
    *out = e;
    return MXD_OK;
}

mxd_rc plugin_open(mxd_backend **out, const mxd_mlx_host *host, const mxd_backend_opts *opts,
                   mxd_err *err) {
    return mlxd::guarded(host, err, "backend 'mlx'",
                         [&] { return open_engine(out, host, opts, err); });
}

const mxd_mlx_plugin plugin = {.built_for = BUILT_FOR, .open = plugin_open};

} // namespace

extern "C" __attribute__((visibility("default"))) uint32_t mxd_mlx_plugin_entry(
    uint32_t abi, const mxd_mlx_plugin **out) {
    if (abi == MXD_MLX_ABI) *out = &plugin;
    return MXD_MLX_ABI;
}
