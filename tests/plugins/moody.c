/* A router that learns (the best mean score, else the cheapest) and misbehaves on request:
 * configuration {"fault": NAME, "from": ID, "to": ID} makes every select whose request id is
 * in from..to (default: all), and a multiple of "every" (default: 1), go wrong. And a scorer that says what the response says. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "llmpick_plugin.h"

#define ARMS 128
/* Builds that differ, for reloads. */
#ifndef REASON
#define REASON "best"
#endif
#ifndef STATE_VERSION
#define STATE_VERSION 1
#endif

typedef struct arm {
  char id[64];
  double sum, n;
} arm;

typedef struct router {
  const llmpick_host *host;
  char fault[32];
  int64_t from, to, every, sleep_ms;
  struct state {
    uint64_t magic, used;
    arm arms[ARMS];
  } state;
} router;

#define STATE_MAGIC UINT64_C(0x6d6f6f6479)

static llmpick_status fail(llmpick_error *err, llmpick_status status, const char *why) {
  err->len = (uint32_t)strlen(why);
  memcpy(err->msg, why, err->len);
  return status;
}

static void nap(int64_t ms) {
  struct timespec time = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&time, NULL);
}

static void crash(void) {
  volatile int *volatile nowhere = NULL;
  *nowhere = 1;
}

static int is(const router *self, const char *fault) { return !strcmp(self->fault, fault); }

static llmpick_str key(const char *text) { return (llmpick_str){text, strlen(text)}; }

static llmpick_status create(const llmpick_host *host, llmpick_str config, void **out,
                             llmpick_error *err) {
  router *self = calloc(1, sizeof *self);
  (void)config;
#ifdef NEVER_STARTS
  free(self);
  return fail(err, LLMPICK_E_INTERNAL, "not today");
#endif
  self->host = host;
  self->to = INT64_MAX;
  self->state.magic = STATE_MAGIC;
  llmpick_str fault = {"", 0};
  host->config_str(host->ctx, key("fault"), &fault);
  if (fault.len >= sizeof self->fault) return fail(err, LLMPICK_E_CONFIG, "no such fault");
  memcpy(self->fault, fault.ptr, fault.len);
  if (host->config_i64(host->ctx, key("from"), &self->from) == LLMPICK_E_CONFIG)
    return fail(err, LLMPICK_E_CONFIG, "`from` must be a whole number");
  host->config_i64(host->ctx, key("to"), &self->to);
  host->config_i64(host->ctx, key("sleep.ms"), &self->sleep_ms);
  self->every = 1;
  host->config_i64(host->ctx, key("every"), &self->every);
  if (is(self, "refuse")) {
    free(self);
    return fail(err, LLMPICK_E_CONFIG, "refused, as the configuration asks");
  }
  if (is(self, "create_crash")) crash();
  if (is(self, "create_hangs"))
    for (;;) nap(1000);
  *out = self;
  return LLMPICK_OK;
}

static void destroy(void *self) { free(self); }

static double mean(const router *self, llmpick_str id) {
  for (uint64_t i = 0; i < self->state.used; i++) {
    const arm *a = &self->state.arms[i];
    if (strlen(a->id) == id.len && !memcmp(a->id, id.ptr, id.len)) return a->sum / a->n;
  }
  return -1;
}

static llmpick_status sensible(const router *self, const llmpick_select_req *req,
                               llmpick_decision *out) {
  int64_t best = -1;
  double score = 0, cost = 0;
  for (uint32_t i = 0; i < req->n_candidates; i++) {
    const llmpick_candidate *c = LLMPICK_CANDIDATE(req, i);
    if (!(c->flags & LLMPICK_CAND_ELIGIBLE)) continue;
    double s = mean(self, c->id), p = isnan(c->est_cost) ? INFINITY : c->est_cost;
    if (best < 0 || s > score || (s == score && p < cost)) best = i, score = s, cost = p;
  }
  if (best < 0) return LLMPICK_E_ABSTAIN;
  out->choices[0] = (uint32_t)best;
  out->choices_len = 1;
  /* One arm does in any mode: the simplest that is allowed. */
  out->mode = req->allowed_modes & (0u - req->allowed_modes);
  out->propensity = 1;
  for (uint32_t i = 0; i < req->n_candidates; i++) out->marginals[i] = i == best;
#ifdef TELL_PROCESS
  out->reason_len = (uint32_t)snprintf(out->reason, 64, "%d %d", getpid(), getppid());
#else
  out->reason_len = sizeof REASON - 1;
  memcpy(out->reason, REASON, sizeof REASON - 1);
#endif
  return LLMPICK_OK;
}

static void all_marginals(const llmpick_select_req *req, llmpick_decision *out, double p) {
  for (uint32_t i = 0; i < req->n_candidates; i++) out->marginals[i] = p;
}

static llmpick_status choose(void *this, const llmpick_select_req *req, llmpick_decision *out,
                             llmpick_error *err) {
  router *self = this;
  llmpick_status status = sensible(self, req, out);
  if (status || (int64_t)req->request_id < self->from || (int64_t)req->request_id >= self->to ||
      (int64_t)req->request_id % self->every)
    return status;
  if (is(self, "range")) out->choices[0] = req->n_candidates;
  if (is(self, "million")) out->choices_len = 1000000;
  if (is(self, "duplicate")) {
    out->choices[1] = out->choices[0];
    out->choices_len = 2;
  }
  if (is(self, "empty")) {
    out->choices_len = 0;
    all_marginals(req, out, NAN);
  }
  if (is(self, "round")) {
    out->choices_len = 0;
    out->mode = LLMPICK_MODE_ANY_WIN;
    all_marginals(req, out, 1.0 / req->n_candidates);
  }
  if (is(self, "ineligible"))
    for (uint32_t i = 0; i < req->n_candidates; i++)
      if (!(LLMPICK_CANDIDATE(req, i)->flags & LLMPICK_CAND_ELIGIBLE)) out->choices[0] = i;
  if (is(self, "no_mode")) out->mode = 0;
  if (is(self, "two_modes")) out->mode = LLMPICK_MODE_SINGLE | LLMPICK_MODE_ANY_WIN;
  if (is(self, "other_mode")) out->mode = LLMPICK_MODE_ALL_IN;
  if (is(self, "odd_numbers")) {
    out->propensity = INFINITY;
    all_marginals(req, out, -3);
  }
  if (is(self, "nan")) {
    out->propensity = NAN;
    all_marginals(req, out, NAN);
  }
  if (is(self, "escape")) {
    out->reason_len = UINT32_MAX;
    memcpy(out->reason, "\033[31m\n\xff", 7);
  }
  if (is(self, "abstain")) return LLMPICK_E_ABSTAIN;
  if (is(self, "error")) return fail(err, LLMPICK_E_INTERNAL, "out of sorts");
  if (is(self, "long_error")) return err->len = UINT32_MAX, LLMPICK_E_INTERNAL;
  if (is(self, "unknown_status")) return 42;
  if (is(self, "slow")) nap(self->sleep_ms);
  if (is(self, "spin"))
    for (volatile int forever = 1; forever;) nap(1000);
  if (is(self, "crash")) crash();
  if (is(self, "exit")) exit(3);
  if (is(self, "abort")) fprintf(stderr, "corrupted\n"), abort();
  if (is(self, "busy_loop"))
    for (volatile int forever = 1; forever;) continue;
  if (is(self, "print")) printf("not for your ears\n"), fflush(stdout);
  if (is(self, "flood"))
    for (int i = 0; i < 100000; i++)
      self->host->log(self->host->ctx, LLMPICK_LOG_ERROR, key("and another thing"));
  return status;
}

static llmpick_status feedback(void *this, const llmpick_feedback *fb, llmpick_error *err) {
  router *self = this;
  struct state *state = &self->state;
  if (is(self, "slow_feedback")) nap(self->sleep_ms);
  if (is(self, "feedback_crash") && (int64_t)fb->request_id >= self->from &&
      (int64_t)fb->request_id < self->to)
    crash();
  if (is(self, "feedback_error")) return fail(err, LLMPICK_E_INTERNAL, "will not learn");
  if (isnan(fb->score)) return LLMPICK_OK;
  uint64_t i = 0;
  while (i < state->used && (strlen(state->arms[i].id) != fb->candidate_id.len ||
                             memcmp(state->arms[i].id, fb->candidate_id.ptr, fb->candidate_id.len)))
    i++;
  if (i == ARMS || fb->candidate_id.len >= sizeof state->arms[i].id)
    return fail(err, LLMPICK_E_INVALID, "too many arms");
  if (i == state->used) memcpy(state->arms[state->used++].id, fb->candidate_id.ptr, fb->candidate_id.len);
  state->arms[i].sum += fb->score;
  state->arms[i].n += 1;
  return LLMPICK_OK;
}

static llmpick_status snapshot(void *this, const llmpick_writer *w, llmpick_error *err) {
  router *self = this;
  if (is(self, "snapshot_crash")) crash();
  if (is(self, "gib_snapshot")) {
    /* Never touched, so that it costs an address range only. */
    void *gib = mmap(NULL, 1u << 30, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    llmpick_status status = w->write(w->ctx, gib, 1u << 30);
    munmap(gib, 1u << 30);
    return status;
  }
  if (is(self, "huge_snapshot"))
    for (;;) {
      static const uint8_t chunk[1 << 16];
      if (w->write(w->ctx, chunk, sizeof chunk)) return fail(err, LLMPICK_E_IO, "no more room");
    }
  return w->write(w->ctx, (const uint8_t *)&self->state, sizeof self->state);
}

static llmpick_status restore(void *this, uint32_t version, llmpick_bytes bytes,
                              llmpick_error *err) {
  router *self = this;
  struct state state;
#ifdef BREAKS_OVER_STATE
  return fail(err, LLMPICK_E_PANIC, "what is this");
#endif
  if (version != STATE_VERSION) return fail(err, LLMPICK_E_STATE, "it has another version");
  if (bytes.len != sizeof state) return fail(err, LLMPICK_E_STATE, "it has the wrong length");
  memcpy(&state, bytes.ptr, sizeof state);
  if (state.magic != STATE_MAGIC || state.used > ARMS)
    return fail(err, LLMPICK_E_STATE, "it is not mine");
  self->state = state;
  return LLMPICK_OK;
}

static llmpick_status score(void *self, const llmpick_score_req *req, llmpick_score *out,
                            llmpick_error *err) {
  char text[32] = {0};
  (void)self;
  memcpy(text, req->response.ptr, req->response.len < 31 ? req->response.len : 31);
  if (!strcmp(text, "abstain")) return LLMPICK_E_ABSTAIN;
  if (!strcmp(text, "fail")) return fail(err, LLMPICK_E_INTERNAL, "cannot say");
  if (!strcmp(text, "crash")) crash();
  if (!strcmp(text, "spin"))
    for (volatile int forever = 1; forever;) nap(1000);
  out->value = strtod(text, NULL);
  return LLMPICK_OK;
}

static llmpick_status create_scorer(const llmpick_host *host, llmpick_str config, void **self,
                                    llmpick_error *err) {
  (void)host, (void)config, (void)err;
  *self = NULL;
  return LLMPICK_OK;
}

static const llmpick_router_vtbl router_table = {
    .size = sizeof router_table, .create = create, .destroy = destroy, .select = choose,
    .feedback = feedback, .snapshot = snapshot, .restore = restore,
};
static const llmpick_scorer_vtbl scorer_table = {
    .size = sizeof scorer_table, .create = create_scorer, .destroy = destroy, .score = score,
};
static const llmpick_plugin moody = {
    .size = sizeof moody, .kind = LLMPICK_KIND_ROUTER, .caps = LLMPICK_CAP_MULTI_SELECT,
    .name = LLMPICK_STR("moody"), .version = LLMPICK_STR("0.1.0"), .state_version = STATE_VERSION,
    .state_version_min = STATE_VERSION, .vtbl = &router_table,
};
static const llmpick_plugin says = {
    .size = sizeof says, .kind = LLMPICK_KIND_SCORER, .name = LLMPICK_STR("says"),
    .version = LLMPICK_STR("0.1.0"), .vtbl = &scorer_table,
};
static const llmpick_plugin *const plugins[] = {&moody, &says};
static const llmpick_module module = {
    .magic = LLMPICK_MAGIC, .size = sizeof module, .abi = LLMPICK_ABI(1, 0),
    .abi_min = LLMPICK_ABI(1, 0), .n_plugins = 2, .plugins = plugins,
};

const llmpick_module *llmpick_plugin_entry(uint32_t host_abi) {
  (void)host_abi;
  return &module;
}
