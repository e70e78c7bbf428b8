/* A router plugin in C: the cheapest arm that may run, where a second of waiting costs what
 * the setting `usd_per_second` says. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmpick_plugin.h"

typedef struct router {
  double usd_per_second;
} router;

static llmpick_status fail(llmpick_error *err, llmpick_status status, const char *why) {
  err->len = (uint32_t)strlen(why);
  memcpy(err->msg, why, err->len);
  return status;
}

static llmpick_status create(const llmpick_host *host, llmpick_str config, void **self,
                             llmpick_error *err) {
  static const llmpick_str key = LLMPICK_STR("usd_per_second");
  double usd_per_second = 0; /* stays as it is where the setting is absent */
  (void)config; /* the same settings as JSON text; looking them up needs no parser */
  if (host->config_f64(host->ctx, key, &usd_per_second) == LLMPICK_E_CONFIG ||
      !(usd_per_second >= 0))
    return fail(err, LLMPICK_E_CONFIG, "`usd_per_second` must be a number from 0 on");
  router *made = malloc(sizeof *made);
  if (!made) return fail(err, LLMPICK_E_INTERNAL, "out of memory");
  made->usd_per_second = usd_per_second;
  *self = made;
  return LLMPICK_OK;
}

static void destroy(void *self) { free(self); }

/* An unknown number is NaN; an arm of unknown cost comes last. */
static double price(const router *self, const llmpick_candidate *arm) {
  double seconds = isnan(arm->latency_ms) ? 0 : arm->latency_ms / 1000;
  return isnan(arm->est_cost) ? INFINITY : arm->est_cost + seconds * self->usd_per_second;
}

static llmpick_status choose(void *self, const llmpick_select_req *req, llmpick_decision *out,
                             llmpick_error *err) {
  const llmpick_candidate *best = NULL;
  (void)err;
  for (uint32_t i = 0; i < req->n_candidates; i++) {
    const llmpick_candidate *arm = LLMPICK_CANDIDATE(req, i);
    if (!(arm->flags & LLMPICK_CAND_ELIGIBLE)) continue;
    if (!best || price(self, arm) < price(self, best)) {
      best = arm;
      out->choices[0] = i;
    }
  }
  if (!best) return LLMPICK_E_ABSTAIN;
  out->choices_len = 1;
  /* One arm does in every mode: the simplest that is allowed, which is the lowest bit. */
  out->mode = req->allowed_modes & (0u - req->allowed_modes);
  return LLMPICK_OK;
}

static const char schema[] =
    "{\"type\": \"object\", \"properties\": {\"usd_per_second\": {\"type\": \"number\", "
    "\"minimum\": 0, \"default\": 0, \"description\": \"What a second of waiting costs.\"}}}";

static const llmpick_router_vtbl table = {
    .size = sizeof table, .create = create, .destroy = destroy, .select = choose};

static const llmpick_plugin plugin = {
    .size = sizeof plugin,
    .kind = LLMPICK_KIND_ROUTER,
    .name = LLMPICK_STR("c-example"),
    .version = LLMPICK_STR("0.1.0"),
    .description = LLMPICK_STR("the cheapest arm that may run"),
    .config_schema = LLMPICK_STR(schema),
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
