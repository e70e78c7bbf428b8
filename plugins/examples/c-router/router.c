/* A router plugin in C: the cheapest arm that may run. */
#include "llmpick_plugin.h"

static llmpick_status create(const llmpick_host *host, llmpick_str config, void **self,
                             llmpick_error *err) {
  (void)host, (void)config, (void)err;
  *self = NULL; /* it has nothing to remember */
  return LLMPICK_OK;
}

static void destroy(void *self) { (void)self; }

static llmpick_status choose(void *self, const llmpick_select_req *req, llmpick_decision *out,
                             llmpick_error *err) {
  const llmpick_candidate *best = NULL;
  (void)self, (void)err;
  for (uint32_t i = 0; i < req->n_candidates; i++) {
    const llmpick_candidate *arm = LLMPICK_CANDIDATE(req, i);
    /* An unknown cost is NaN, which is never smaller than anything. */
    if ((arm->flags & LLMPICK_CAND_ELIGIBLE) && (!best || arm->est_cost < best->est_cost)) {
      best = arm;
      out->choices[0] = i;
    }
  }
  if (!best) return LLMPICK_E_ABSTAIN;
  out->choices_len = 1;
  out->mode = req->allowed_modes & LLMPICK_MODE_SINGLE ? LLMPICK_MODE_SINGLE
                                                       : LLMPICK_MODE_ANY_WIN;
  return LLMPICK_OK;
}

static const llmpick_router_vtbl table = {
    .size = sizeof table, .create = create, .destroy = destroy, .select = choose};

static const llmpick_plugin plugin = {
    .size = sizeof plugin,
    .kind = LLMPICK_KIND_ROUTER,
    .name = LLMPICK_STR("c-example"),
    .version = LLMPICK_STR("0.1.0"),
    .description = LLMPICK_STR("the cheapest arm that may run"),
    .vtbl = &table,
};
static const llmpick_plugin *const plugins[] = {&plugin};

static const llmpick_module module = {
    .magic = LLMPICK_MAGIC,
    .size = sizeof module,
    .abi = LLMPICK_ABI(LLMPICK_ABI_MAJOR, LLMPICK_ABI_MINOR),
    .abi_min = LLMPICK_ABI(1, 0),
    .n_plugins = 1,
    .plugins = plugins,
};

const llmpick_module *llmpick_plugin_entry(uint32_t host_abi) {
  return host_abi >= module.abi_min ? &module : NULL;
}
