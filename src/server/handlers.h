/* handlers.h - what the route table points to. Each sets the reply or a job; none blocks. */
#ifndef MXD_SERVER_HANDLERS_H
#define MXD_SERVER_HANDLERS_H

#include "server/http.h"

void mxd_models_handle(mxd_req *r);
void mxd_model_handle(mxd_req *r);
void mxd_tokenize_handle(mxd_req *r);
void mxd_detokenize_handle(mxd_req *r);
void mxd_apply_template_handle(mxd_req *r);
void mxd_health_handle(mxd_req *r);
void mxd_livez_handle(mxd_req *r);
void mxd_readyz_handle(mxd_req *r);
void mxd_metrics_handle(mxd_req *r);
void mxd_cluster_state_handle(mxd_req *r);
void mxd_cluster_plan_handle(mxd_req *r);
void mxd_stream_handle(mxd_req *r);
void mxd_cancel_handle(mxd_req *r);
void mxd_openapi_handle(mxd_req *r);
void mxd_index_handle(mxd_req *r);

#endif
