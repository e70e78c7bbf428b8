/* A scorer plugin in C: 1 for the reference itself, the setting `partial` for an answer that
 * holds it, 0 for anything else. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmpick_plugin.h"

typedef struct scorer {
  double partial;
} scorer;

static llmpick_status fail(llmpick_error *err, llmpick_status status, const char *why) {
  err->len = (uint32_t)strlen(why);
  memcpy(err->msg, why, err->len);
  return status;
}

static llmpick_status create(const llmpick_host *host, llmpick_str config, void **self,
                             llmpick_error *err) {
  static const llmpick_str key = LLMPICK_STR("partial");
  double partial = 0.5; /* stays as it is where the setting is absent */
  (void)config; /* the same settings as JSON text; looking them up needs no parser */
  if (host->config_f64(host->ctx, key, &partial) == LLMPICK_E_CONFIG ||
      !(partial >= 0 && partial <= 1))
    return fail(err, LLMPICK_E_CONFIG, "`partial` must be a number from 0 to 1");
  scorer *made = malloc(sizeof *made);
  if (!made) return fail(err, LLMPICK_E_INTERNAL, "out of memory");
  made->partial = partial;
  *self = made;
  return LLMPICK_OK;
}

static void destroy(void *self) { free(self); }

/* Texts are not NUL-terminated: nothing here may look for a NUL. */
static int holds(llmpick_str text, llmpick_str part) {
  for (size_t at = 0; at + part.len <= text.len; at++)
    if (!memcmp(text.ptr + at, part.ptr, part.len)) return 1;
  return 0;
}

static llmpick_status grade(void *self, const llmpick_score_req *req, llmpick_score *out,
                            llmpick_error *err) {
  (void)err;
  if (!req->reference.len) return LLMPICK_E_ABSTAIN; /* nothing to go by */
  if (!holds(req->response, req->reference))
    out->value = 0;
  else if (req->response.len == req->reference.len)
    out->value = 1;
  else
    out->value = ((const scorer *)self)->partial;
  out->confidence = NAN; /* unknown */
  return LLMPICK_OK;
}

static const char schema[] =
    "{\"type\": \"object\", \"properties\": {\"partial\": {\"type\": \"number\", "
    "\"minimum\": 0, \"maximum\": 1, \"default\": 0.5, "
    "\"description\": \"The grade of an answer that holds the reference and more.\"}}}";

static const llmpick_scorer_vtbl table = {
    .size = sizeof table, .create = create, .destroy = destroy, .score = grade};

static const llmpick_plugin plugin = {
    .size = sizeof plugin,
    .kind = LLMPICK_KIND_SCORER,
    .name = LLMPICK_STR("c-example"),
    .version = LLMPICK_STR("0.1.0"),
    .description = LLMPICK_STR("1 for the reference, less for an answer that only holds it"),
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
