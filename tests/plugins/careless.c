/* A router and a scorer that keep every promise of llmpick_plugin.h, or break the one that
 * the setting `fault` names: for the conformance kit, which must find each. */
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmpick_plugin.h"

#define ARMS 128
#define MAGIC UINT64_C(0x737365656c657261)

typedef struct arm {
  char id[64];
  double sum, n;
} arm;

typedef struct state {
  uint64_t magic, used, selects;
  arm arms[ARMS];
} state;

typedef struct plugin_self {
  char fault[32];
  const llmpick_candidate *kept;
  pthread_t maker;
  state *learnt;
  state own;
} plugin_self;

/* What instances must not share, and what threads must not have for themselves. */
static state shared;
static _Thread_local uint64_t calls_of_this_thread;

static void lose(size_t bytes) {
  static void *volatile lost; /* volatile, or the compiler leaves both lines out */
  lost = malloc(bytes);
  memset(lost, 1, bytes);
}

static llmpick_status fail(llmpick_error *err, llmpick_status status, const char *why) {
  err->len = (uint32_t)strlen(why);
  memcpy(err->msg, why, err->len);
  return status;
}

static int is(const plugin_self *self, const char *fault) { return !strcmp(self->fault, fault); }

static llmpick_status create(const llmpick_host *host, llmpick_str config, void **out,
                             llmpick_error *err) {
  plugin_self *self = calloc(1, sizeof *self);
  llmpick_str fault = {"", 0};
  llmpick_status found = host->config_str(host->ctx, (llmpick_str)LLMPICK_STR("fault"), &fault);
  if (found == LLMPICK_E_CONFIG || fault.len >= sizeof self->fault) {
    free(self);
    return fail(err, LLMPICK_E_CONFIG, "`fault` must be a short text");
  }
  memcpy(self->fault, fault.ptr, fault.len);
  if (is(self, "create_aborts")) abort();
  if (is(self, "create_exits")) exit(3);
  if (is(self, "config_overread") && config.ptr[config.len]) abort();
  self->maker = pthread_self();
  self->learnt = is(self, "shared") ? &shared : &self->own;
  self->learnt->magic = MAGIC;
  *out = self;
  return LLMPICK_OK;
}

static void destroy(void *this) {
  plugin_self *self = this;
  if (is(self, "destroy_crashes")) raise(SIGSEGV);
  if (!is(self, "leaks_instance")) free(self);
}

static double mean(const plugin_self *self, llmpick_str id) {
  for (uint64_t i = 0; i < self->learnt->used; i++) {
    const arm *a = &self->learnt->arms[i];
    if (strlen(a->id) == id.len && !memcmp(a->id, id.ptr, id.len)) return a->sum / a->n;
  }
  return 1; /* nothing known: worth a try */
}

static llmpick_status choose(void *this, const llmpick_select_req *req, llmpick_decision *out,
                             llmpick_error *err) {
  plugin_self *self = this;
  int64_t best = -1;
  double score = 0;
  if (is(self, "thread_bound") && !pthread_equal(self->maker, pthread_self()))
    return fail(err, LLMPICK_E_INTERNAL, "called from a thread that is not mine");
  for (uint32_t i = 0; i < req->n_candidates; i++) {
    const llmpick_candidate *c = is(self, "ignores_stride") ? &req->candidates[i]
                                                            : LLMPICK_CANDIDATE(req, i);
    if (!(c->flags & LLMPICK_CAND_ELIGIBLE)) continue;
    double s = mean(self, c->id);
    if (is(self, "nan_breaks") && isnan(c->est_cost)) raise(SIGFPE);
    if (is(self, "id_overread") && strlen(c->id.ptr) < c->id.len) continue;
    if (best < 0 || s > score) best = i, score = s;
  }
  if (is(self, "never_abstains") && best < 0) best = 0;
  if (is(self, "error_not_abstain") && best < 0)
    return fail(err, LLMPICK_E_INTERNAL, "nobody is eligible");
  if (best < 0) return LLMPICK_E_ABSTAIN;
  if (is(self, "own_chance")) best = rand() % req->n_candidates;
  if (is(self, "thread_local")) best = calls_of_this_thread++ % req->n_candidates;
  if (is(self, "learns_in_select")) self->learnt->selects++;
  if (is(self, "many_crash") && req->n_candidates > 40) raise(SIGSEGV);
  if (is(self, "many_hang") && req->n_candidates > 40)
    for (volatile int forever = 1; forever;)
      ;
  if (is(self, "writes_inputs")) ((llmpick_candidate *)(uintptr_t)req->candidates)->n_err++;
  if (is(self, "overruns_choices")) out->choices[out->choices_cap] = 7;
  if (is(self, "overruns_reason")) memset(out->reason, 'x', out->reason_cap + 1);
  if (is(self, "keeps_pointer")) {
    if (self->kept && self->kept->n_ok == 12345) return LLMPICK_E_ABSTAIN;
    self->kept = req->candidates;
  }
  if (is(self, "leaks")) lose(64);
  out->choices[0] = (uint32_t)best;
  out->choices_len = 1;
  /* One arm does in any mode: the simplest that is allowed. */
  out->mode = req->allowed_modes & (0u - req->allowed_modes);
  if (is(self, "one_mode")) out->mode = LLMPICK_MODE_SINGLE;
  return LLMPICK_OK;
}

static llmpick_status feedback(void *this, const llmpick_feedback *fb, llmpick_error *err) {
  plugin_self *self = this;
  state *learnt = self->learnt;
  uint64_t i = 0;
  if (is(self, "stranger_aborts") && !strncmp(fb->candidate_id.ptr, "arm-999", 7)) abort();
  if (isnan(fb->score) || fb->candidate_id.len >= sizeof learnt->arms[0].id) return LLMPICK_OK;
  while (i < learnt->used && (strlen(learnt->arms[i].id) != fb->candidate_id.len ||
                              memcmp(learnt->arms[i].id, fb->candidate_id.ptr, fb->candidate_id.len)))
    i++;
  if (i == ARMS) return fail(err, LLMPICK_E_INVALID, "too many arms");
  if (i == learnt->used)
    memcpy(learnt->arms[learnt->used++].id, fb->candidate_id.ptr, fb->candidate_id.len);
  learnt->arms[i].sum += fb->score;
  learnt->arms[i].n += 1;
  return LLMPICK_OK;
}

static llmpick_status snapshot(void *this, const llmpick_writer *w, llmpick_error *err) {
  plugin_self *self = this;
  static const state empty = {.magic = MAGIC};
  const state *written = is(self, "forgets") ? &empty : self->learnt;
  (void)err;
  return w->write(w->ctx, (const uint8_t *)written, sizeof *written);
}

static llmpick_status restore(void *this, uint32_t version, llmpick_bytes bytes,
                              llmpick_error *err) {
  plugin_self *self = this;
  if (is(self, "takes_any_state")) return LLMPICK_OK;
  if (is(self, "silent_refusal") && bytes.len != sizeof(state)) return LLMPICK_E_STATE;
  if (is(self, "half_restores") && bytes.len < sizeof(state)) self->learnt->used = 0;
  if (version != 1 && !is(self, "any_version"))
    return fail(err, LLMPICK_E_STATE, "it has another version");
  if (bytes.len != sizeof(state)) return fail(err, LLMPICK_E_STATE, "it has the wrong length");
  state learnt;
  memcpy(&learnt, bytes.ptr, sizeof learnt);
  if (learnt.magic != MAGIC || learnt.used > ARMS)
    return fail(err, LLMPICK_E_STATE, "it is not mine");
  *self->learnt = learnt;
  return LLMPICK_OK;
}

/* How many bytes of the reference stand at the same place in the response. */
static llmpick_status score(void *this, const llmpick_score_req *req, llmpick_score *out,
                            llmpick_error *err) {
  plugin_self *self = this;
  size_t same = 0;
  (void)err;
  if (!req->reference.len) return LLMPICK_E_ABSTAIN;
  for (size_t i = 0; i < req->reference.len && i < req->response.len; i++)
    same += req->reference.ptr[i] == req->response.ptr[i];
  out->value = (double)same / (double)req->reference.len;
  out->confidence = NAN;
  if (is(self, "percent")) out->value *= 100;
  if (is(self, "sure")) out->confidence = 7;
  if (is(self, "own_chance")) out->value = rand() / (double)RAND_MAX;
  if (is(self, "writes_inputs")) *(char *)(uintptr_t)req->reference.ptr = 'x';
  if (is(self, "text_overread")) out->value *= strlen(req->reference.ptr) < 1000000;
  if (is(self, "huge_crash") && req->response.len > 100000) abort();
  if (is(self, "leaks")) lose(4096);
  return LLMPICK_OK;
}

static const char schema[] =
    "{\"type\": \"object\", \"properties\": {\"fault\": {\"type\": \"string\"}}}";
static const llmpick_router_vtbl router_table = {
    .size = sizeof router_table, .create = create, .destroy = destroy, .select = choose,
    .feedback = feedback, .snapshot = snapshot, .restore = restore,
};
static const llmpick_scorer_vtbl scorer_table = {
    .size = sizeof scorer_table, .create = create, .destroy = destroy, .score = score,
};
static const llmpick_plugin router = {
    .size = sizeof router, .kind = LLMPICK_KIND_ROUTER, .name = LLMPICK_STR("careless"),
#ifdef ODD_VERSION
    .version = LLMPICK_STR("one"),
#else
    .version = LLMPICK_STR("0.1.0"),
#endif
    .config_schema = {schema, sizeof schema - 1},
    .state_version = 1, .state_version_min = 1, .vtbl = &router_table,
};
static const llmpick_plugin scorer = {
    .size = sizeof scorer, .kind = LLMPICK_KIND_SCORER, .name = LLMPICK_STR("byte-match"),
    .version = LLMPICK_STR("0.1.0"), .config_schema = {schema, sizeof schema - 1},
    .vtbl = &scorer_table,
};
static const llmpick_plugin *const plugins[] = {&router, &scorer};
static const llmpick_module module = {
    .magic = LLMPICK_MAGIC, .size = sizeof module, .abi = LLMPICK_ABI(1, 0),
    .abi_min = LLMPICK_ABI(1, 0), .n_plugins = 2, .plugins = plugins,
};

#ifdef CONSTRUCTOR_ABORTS
__attribute__((constructor)) static void first(void) { abort(); }
#endif

const llmpick_module *llmpick_plugin_entry(uint32_t host_abi) {
  (void)host_abi;
  return &module;
}
