//! The tables, their version, and how an older file becomes a newer one.

use rusqlite::{Connection, TransactionBehavior};

use crate::LedgerErrorKind;

/// Version of the tables, kept in SQLite's `user_version`.
///
/// Raise it when a program that knows only the old number would misread or damage the file: a
/// column or table that it must fill, or a changed meaning. Add the step to [`MIGRATIONS`], and
/// a ledger of the old version to the fixtures. New tables and nullable columns that old
/// programs may ignore need no new number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LedgerVersion(pub u32);

/// The version this program writes.
pub const CURRENT: LedgerVersion = LedgerVersion(MIGRATIONS.len() as u32);

/// SQLite's `application_id` of a ledger: `llmp` in ASCII.
pub const APPLICATION_ID: i32 = i32::from_be_bytes(*b"llmp");

/// Step `n` turns version `n` into `n + 1`; version 0 is an empty file.
const MIGRATIONS: &[&str] = &[V1, V2, V3, V4];

const V1: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('identity', lower(hex(randomblob(16))));
INSERT INTO meta VALUES ('base_seed', lower(hex(randomblob(8))));

-- Programs that have the ledger open; `lock` names the file each holds locked while it lives.
CREATE TABLE owners (id INTEGER PRIMARY KEY AUTOINCREMENT, lock TEXT NOT NULL);

CREATE TABLE routes (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  owner INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  prompt_hash TEXT NOT NULL,
  prompt TEXT,
  context TEXT NOT NULL,
  session TEXT NOT NULL,
  target TEXT NOT NULL,
  router TEXT NOT NULL,
  seed INTEGER NOT NULL,
  arms_epoch INTEGER NOT NULL,
  allowed_modes TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  max_new_tokens INTEGER NOT NULL,
  max_cost REAL,
  max_latency_ms REAL,
  min_score REAL,
  cost_budget REAL,
  max_arms INTEGER NOT NULL,
  learn INTEGER NOT NULL,
  status TEXT NOT NULL,
  mode TEXT,
  source TEXT,
  source_reason TEXT,
  reason TEXT,
  propensity REAL,
  choices TEXT,
  answered INTEGER,
  accepted INTEGER
);
CREATE INDEX routes_open ON routes (owner) WHERE status IN ('deciding', 'running');

CREATE TABLE route_arms (
  route INTEGER NOT NULL REFERENCES routes (id),
  place INTEGER NOT NULL,
  arm TEXT NOT NULL,
  locality TEXT NOT NULL,
  warm INTEGER NOT NULL,
  eligible INTEGER NOT NULL,
  unfit TEXT,
  context_tokens INTEGER NOT NULL,
  price_in REAL, price_out REAL, est_cost REAL, cost_max REAL,
  latency_ms REAL, ttft_ms REAL, score REAL,
  n_ok INTEGER NOT NULL, n_err INTEGER NOT NULL,
  inflight INTEGER NOT NULL,
  resident_bytes INTEGER NOT NULL,
  marginal REAL,
  PRIMARY KEY (route, place)
) WITHOUT ROWID;

CREATE TABLE calls (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  route INTEGER NOT NULL REFERENCES routes (id),
  position INTEGER NOT NULL,
  arm TEXT NOT NULL,
  started_ms INTEGER NOT NULL,
  reserved INTEGER NOT NULL,
  outcome TEXT,
  learn INTEGER NOT NULL DEFAULT 0,
  prompt_tokens INTEGER NOT NULL DEFAULT 0,
  cached_tokens INTEGER NOT NULL DEFAULT 0,
  completion_tokens INTEGER NOT NULL DEFAULT 0,
  latency_ms REAL, ttft_ms REAL, busy_ms REAL, load_ms REAL,
  cold INTEGER NOT NULL DEFAULT 0,
  cost INTEGER NOT NULL DEFAULT 0,
  score REAL, scorer TEXT,
  user_score REAL,
  error TEXT,
  UNIQUE (route, position)
);
CREATE INDEX calls_arm ON calls (arm);

CREATE TABLE feedback (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  nonce INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  origin TEXT NOT NULL,
  router TEXT NOT NULL,
  route INTEGER NOT NULL REFERENCES routes (id),
  arm TEXT NOT NULL,
  position INTEGER NOT NULL,
  outcome TEXT NOT NULL,
  task TEXT NOT NULL,
  fallback INTEGER NOT NULL,
  cold INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  latency_ms REAL, ttft_ms REAL, cost REAL, score REAL
);
CREATE INDEX feedback_route ON feedback (route);

-- What is known of each arm, folded call by call: derived from `calls`, kept because every
-- decision reads it.
CREATE TABLE measured (
  arm TEXT PRIMARY KEY,
  n_ok INTEGER NOT NULL, n_err INTEGER NOT NULL,
  latency_ms REAL, ttft_ms REAL, score REAL,
  prefill_ms REAL, decode_ms REAL, completion_tokens REAL
) WITHOUT ROWID;

-- `spend_limit` in nano-dollars; `window_ms` 0 is one window for ever.
CREATE TABLE budgets (
  key TEXT PRIMARY KEY, window_ms INTEGER NOT NULL, spend_limit INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE spend (
  key TEXT NOT NULL, window_start INTEGER NOT NULL, spent INTEGER NOT NULL,
  PRIMARY KEY (key, window_start)
) WITHOUT ROWID;
CREATE TABLE reservations (
  route INTEGER NOT NULL, position INTEGER NOT NULL, key TEXT NOT NULL,
  window_start INTEGER NOT NULL, amount INTEGER NOT NULL,
  PRIMARY KEY (route, position, key)
) WITHOUT ROWID;
CREATE INDEX reservations_key ON reservations (key, window_start);
";

/// Requests with parts. A program that knows only version 1 would report each part to the
/// learner by itself, where an arm gives one feedback for all of its parts.
const V2: &str = "
CREATE TABLE parts (
  route INTEGER NOT NULL REFERENCES routes (id),
  part INTEGER NOT NULL,
  name TEXT NOT NULL,
  prompt_hash TEXT NOT NULL,
  prompt TEXT,
  answered INTEGER,
  accepted INTEGER,
  PRIMARY KEY (route, part)
) WITHOUT ROWID;
ALTER TABLE calls ADD COLUMN part INTEGER;
ALTER TABLE calls ADD COLUMN place INTEGER;
";

/// What a second router would have decided. A program that knows only version 2 looks for no such
/// rows, and yet cannot make the table: the number says that it is there.
const V3: &str = "
CREATE TABLE shadows (
  route INTEGER PRIMARY KEY REFERENCES routes (id),
  router TEXT NOT NULL,
  choices TEXT NOT NULL,
  mode TEXT,
  propensity REAL,
  marginals TEXT NOT NULL,
  reason TEXT NOT NULL,
  error TEXT
);
";

/// A program that knows only version 3 would learn without the features, and so something else.
const V4: &str = "
-- The request's features: 32-bit floats, little-endian; NULL for none.
ALTER TABLE routes ADD COLUMN features BLOB;
";

/// Brings the file to [`CURRENT`], all or nothing; several programs may try at once.
pub(crate) fn migrate(conn: &mut Connection) -> Result<(), LedgerErrorKind> {
    if check(conn)? == CURRENT {
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another program may have migrated while this one waited for the lock.
    let found = check(&tx)?;
    for step in MIGRATIONS.iter().skip(found.0 as usize) {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", CURRENT.0)?;
    tx.commit()?;
    Ok(())
}

/// The file's version, if it is a ledger or empty.
pub(crate) fn check(conn: &Connection) -> Result<LedgerVersion, LedgerErrorKind> {
    let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let version = pragma("user_version")?;
    let application = pragma("application_id")?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    if tables == 0 && version == 0 {
        return Ok(LedgerVersion(0));
    }
    if application != i64::from(APPLICATION_ID) {
        return Err(LedgerErrorKind::NotALedger);
    }
    match u32::try_from(version) {
        Ok(found) if found > CURRENT.0 => Err(LedgerErrorKind::Newer {
            found,
            known: CURRENT.0,
        }),
        Ok(found) if found > 0 => Ok(LedgerVersion(found)),
        _ => Err(LedgerErrorKind::Corrupt(format!(
            "its format number is {version}"
        ))),
    }
}
