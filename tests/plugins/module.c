/* Libraries that break the rules before anything runs: one fault per build, chosen with
 * -DFAULT=... Without it, this is the smallest library that loads. */
#include "llmpick_plugin.h"

#define NO_FAULT 0
#define OTHER_MAJOR 1
#define NEEDS_NEWER 2
#define WRONG_MAGIC 3
#define NO_SYMBOL 4
#define NULL_SELECT 5
#define BAD_NAME 6
#define REFUSES 7
#define EMPTY 8
#define UNDEFINED 9
#define TWINS 10
#define NULL_PLUGIN 11
#define SHORT_TABLE 12
#define UNKNOWN_KIND 13
#define BAD_TEXT 14
#define LONGER 15
/* These break no rule: they end or stall the process that runs them. */
#define CRASH_LOAD 16
#define HANG_LOAD 17
#define EXIT_LOAD 18
#define ABORT_CREATE 19
#define HANG_CREATE 20
#define CRASH_DESTROY 21
#define WANTS_CONFIG 22
#define CRASH_HERE 23
#define CRASH_CREATE_HERE 24
#ifndef FAULT
#define FAULT NO_FAULT
#endif

#if FAULT == UNDEFINED
extern int nobody_defines_this(void);
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A variable of the test that a child process does not get. */
static inline int is_here(void) { return getenv("LLMPICK_TEST_CRASH") != NULL; }

static inline void crash(void) {
  volatile int *volatile nowhere = NULL;
  *nowhere = 1;
}

#if FAULT == CRASH_LOAD || FAULT == HANG_LOAD || FAULT == EXIT_LOAD || FAULT == CRASH_HERE
__attribute__((constructor)) static void initialise(void) {
#if FAULT == CRASH_LOAD
  crash();
#elif FAULT == HANG_LOAD
  for (;;) pause();
#elif FAULT == EXIT_LOAD
  _exit(0);
#else
  if (is_here()) crash();
#endif
}
#endif

static llmpick_status create(const llmpick_host *host, llmpick_str config, void **self,
                             llmpick_error *err) {
  (void)host, (void)config, (void)err;
  *self = NULL;
#if FAULT == ABORT_CREATE
  fprintf(stderr, "cannot go on\n");
  abort();
#elif FAULT == HANG_CREATE
  for (;;) pause();
#elif FAULT == WANTS_CONFIG
  err->len = 14;
  memcpy(err->msg, "needs a secret", 14);
  return LLMPICK_E_CONFIG;
#elif FAULT == CRASH_CREATE_HERE
  if (is_here()) crash();
#endif
  return LLMPICK_OK;
}

static void destroy(void *self) {
  (void)self;
#if FAULT == CRASH_DESTROY
  crash();
#endif
}

static llmpick_status choose(void *self, const llmpick_select_req *req, llmpick_decision *out,
                             llmpick_error *err) {
  (void)self, (void)req, (void)err;
#if FAULT == UNDEFINED
  nobody_defines_this();
#endif
  out->choices[0] = 0;
  out->choices_len = 1;
  out->mode = LLMPICK_MODE_SINGLE;
  return LLMPICK_OK;
}

/* A module of a newer minor version: more fields than this host knows. */
static const struct {
  llmpick_router_vtbl known;
  void *newer[4];
} table = {
    .known = {
#if FAULT == SHORT_TABLE
        .size = offsetof(llmpick_router_vtbl, select),
#elif FAULT == LONGER
        .size = sizeof(table),
#else
        .size = sizeof(llmpick_router_vtbl),
#endif
        .create = create,
        .destroy = destroy,
#if FAULT != NULL_SELECT
        .select = choose,
#endif
    },
};

#if FAULT == BAD_TEXT
static const char not_text[] = {'\xff', '\xfe'};
#endif

static const struct {
  llmpick_plugin known;
  uint64_t newer[4];
} plugin = {
  .known = {
#if FAULT == LONGER
    .size = sizeof plugin,
#else
    .size = sizeof plugin.known,
#endif
#if FAULT == UNKNOWN_KIND
    .kind = 77,
#else
    .kind = LLMPICK_KIND_ROUTER,
#endif
#if FAULT == BAD_NAME
    .name = LLMPICK_STR("Not A Name"),
#else
    .name = LLMPICK_STR("first"),
#endif
#ifdef VERSION
    .version = LLMPICK_STR(VERSION),
#else
    .version = LLMPICK_STR("1.2.3"),
#endif
#if FAULT == BAD_TEXT
    .description = {not_text, sizeof not_text},
#endif
    .vtbl = &table,
  },
  .newer = {~UINT64_C(0), ~UINT64_C(0), ~UINT64_C(0), ~UINT64_C(0)},
};

static const llmpick_plugin *const plugins[] = {
#if FAULT == NULL_PLUGIN
    NULL,
#else
    &plugin.known,
#endif
#if FAULT == TWINS
    &plugin.known,
#endif
};

static const struct {
  llmpick_module known;
  uint64_t newer[4];
} module = {
  .known = {
#if FAULT == WRONG_MAGIC
    .magic = {'N', 'O', 'T', 'M', 'I', 'N', 'E', 0},
#else
    .magic = LLMPICK_MAGIC,
#endif
#if FAULT == LONGER
    .size = sizeof module,
#else
    .size = sizeof module.known,
#endif
#if FAULT == OTHER_MAJOR
    .abi = LLMPICK_ABI(2, 3),
#elif FAULT == NEEDS_NEWER || FAULT == LONGER
    .abi = LLMPICK_ABI(1, 9),
#else
    .abi = LLMPICK_ABI(1, 0),
#endif
#if FAULT == NEEDS_NEWER
    .abi_min = LLMPICK_ABI(1, 9),
#else
    .abi_min = LLMPICK_ABI(1, 0),
#endif
#if FAULT != EMPTY
    .n_plugins = sizeof plugins / sizeof *plugins,
#endif
    .plugins = plugins,
    .built_with = LLMPICK_STR("cc"),
  },
  .newer = {~UINT64_C(0), ~UINT64_C(0), ~UINT64_C(0), ~UINT64_C(0)},
};

#if FAULT == NO_SYMBOL
LLMPICK_EXPORT const llmpick_module *some_other_entry(uint32_t host_abi);
LLMPICK_EXPORT const llmpick_module *some_other_entry(uint32_t host_abi) {
#else
const llmpick_module *llmpick_plugin_entry(uint32_t host_abi) {
#endif
  (void)host_abi;
#if FAULT == REFUSES
  return NULL;
#else
  return &module.known;
#endif
}
