//! The runs of a measurement, in their order: ours and the peer's in turn.

use std::fs::File;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use llmpick_daemon::engine::{
    BenchRun, EngineError, Model, bench_prompt, page_cache, peak_resident, read_tokenizer,
};
use tokio_util::sync::CancellationToken;

use super::once::{self, Once, Task};
use super::peer::{About, Asked, Peer, Program};
use super::quiet::{self, Sample, Whose};
use super::report::{
    Against, DecodeRate, LoadTimes, Measure, MemoryUse, Pairs, PromptSpeed, Report, Unit,
};
use super::{Plan, What};
use crate::error::{CliError, ExitCode, Result, chain};

/// A run lasts this long at least: the kernel's clocks have ticks of 10 ms, and a tenth of a
/// core must show in them.
const RUN: Duration = Duration::from_millis(600);

/// After a run its threads may spin a little longer, and the next is not theirs.
const SETTLE: Duration = Duration::from_millis(60);

/// One measurement.
pub struct Session<'a> {
    plan: &'a Plan,
    stop: &'a CancellationToken,
    gate: Gate,
    program: Option<Program>,
    about: Option<About>,
    measures: Vec<Measure>,
    notes: Vec<String>,
}

/// The sides of a warm comparison.
struct Sides {
    model: Model,
    peer: Option<Peer>,
}

/// What the warm runs found.
#[derive(Default)]
struct Speeds {
    load_s: Option<f64>,
    /// As the loaded model has them: a stock model takes its own.
    threads: Option<usize>,
    prompts: Vec<(usize, Pairs)>,
    generated: Option<Pairs>,
    whole: Option<Pairs>,
    decode: Option<DecodeRate>,
}

impl<'a> Session<'a> {
    pub fn new(plan: &'a Plan, stop: &'a CancellationToken) -> Self {
        Self {
            plan,
            stop,
            gate: Gate::new(plan),
            program: None,
            about: None,
            measures: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Runs everything that the plan wants.
    ///
    /// # Errors
    /// If a side fails, others use the processor, or the person stops it.
    pub async fn measure(mut self) -> Result<Report> {
        let plan = self.plan;
        if let Some(named) = &plan.against {
            self.program = Some(Program::find(named.as_deref()).await?);
        }
        let tokenizer = read_tokenizer(&plan.path)
            .map_err(|error| CliError::new(ExitCode::ModelFile, chain(&error)))?;
        let prompt = |len| bench_prompt(&tokenizer, len);
        // Starts come first: pages that a loaded model holds cannot be dropped.
        let load = match plan.wants(What::Load) {
            true => Some(self.loads(&prompt(plan.shortest())).await?),
            false => None,
        };
        let memory = match plan.wants(What::Memory) {
            true => {
                let prompts: Vec<Vec<u32>> = plan.prompts.iter().map(|len| prompt(*len)).collect();
                Some(self.memory(&prompts).await?)
            }
            false => None,
        };
        let speeds = match plan.wants(What::Prompt) || plan.wants(What::Generate) {
            true => self.speeds(&prompt).await?,
            false => Speeds::default(),
        };
        Ok(self.report(load, memory, speeds))
    }

    fn report(
        mut self,
        load: Option<LoadTimes>,
        memory: Option<MemoryUse>,
        speeds: Speeds,
    ) -> Report {
        let plan = self.plan;
        // Speeds are what people look for first.
        let mut measures = Vec::new();
        for (tokens, pairs) in &speeds.prompts {
            measures.push(pairs.measure(format!("prompt {tokens}"), Unit::TokensPerSecond));
        }
        if let Some(pairs) = &speeds.generated {
            let name = format!("generate {}", plan.gen_tokens);
            measures.push(pairs.measure(name, Unit::TokensPerSecond));
        }
        if let Some(pairs) = &speeds.whole {
            let name = format!("whole answer {}+{}", plan.shortest(), plan.gen_tokens);
            measures.push(pairs.measure(name, Unit::TokensPerSecond));
        }
        measures.append(&mut self.measures);
        let prompts: Vec<PromptSpeed> = speeds
            .prompts
            .iter()
            .map(|(tokens, pairs)| PromptSpeed {
                tokens: *tokens,
                tps: pairs.ours(),
                ttft_ms: *tokens as f64 / pairs.ours().median * 1e3,
            })
            .collect();
        let first = speeds.prompts.first().map(|(_, pairs)| pairs);
        let seen = self.gate.seen;
        let threads = speeds.threads.unwrap_or_else(|| self.threads());
        Report {
            model: plan.model.clone(),
            file_bytes: plan.file_bytes,
            context_tokens: plan.context,
            kv_cache: plan.kv_cache.clone(),
            threads,
            runs: plan.runs,
            load_s: load
                .as_ref()
                .map(|load| load.warm_s.median)
                .or(speeds.load_s),
            prompt_tps: first.map(Pairs::ours),
            ttft_ms: prompts.first().map(|prompt| prompt.ttft_ms),
            gen_tps: speeds.generated.as_ref().map(Pairs::ours),
            peak_rss_bytes: memory
                .as_ref()
                .map_or_else(peak_resident, |memory| memory.peak_bytes),
            prompts,
            load,
            memory,
            decode: speeds.decode,
            foreign_cores: seen.map(|seen| seen.foreign),
            stolen_cores: seen.map(|seen| seen.stolen),
            quiet: seen.is_some_and(|seen| seen.quiet),
            ratio: speeds.whole.as_ref().or(first).and_then(Pairs::ratio),
            against: self.about.map(|about| Against {
                name: "llama.cpp",
                about,
                kv_cache: "f16",
            }),
            measures,
            notes: self.notes,
        }
    }

    fn asked(&self, threads: usize) -> Asked {
        Asked {
            file: self.plan.path.clone(),
            threads,
            context: self.plan.context,
        }
    }

    /// Threads that ours would use: the peer gets as many.
    fn threads(&self) -> usize {
        let given = self.plan.options.threads;
        given.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Starts of new processes, ours and the peer's in turn.
    async fn loads(&mut self, prompt: &[u32]) -> Result<LoadTimes> {
        let warm = self.starts(prompt, false).await?;
        let (warm, warm_first) = warm.map_err(|why| CliError::new(ExitCode::Failed, why))?;
        self.measures.push(warm.measure("load", Unit::Seconds));
        let name = format!("load and first token, prompt {}", prompt.len());
        self.measures.push(warm_first.measure(&name, Unit::Seconds));
        let cold = match self.starts(prompt, true).await? {
            Ok(cold) => Some(cold),
            Err(why) => {
                self.notes.push(format!("cold loads are left out: {why}"));
                None
            }
        };
        if let Some((cold, cold_first)) = &cold {
            self.measures
                .push(cold.measure("load, cold", Unit::Seconds));
            self.measures
                .push(cold_first.measure(format!("{name}, cold"), Unit::Seconds));
        }
        let (cold, cold_first) = cold.unzip();
        Ok(LoadTimes {
            warm_s: warm.ours(),
            warm_first_token_s: warm_first.ours(),
            cold_s: cold.map(|pairs| pairs.ours()),
            cold_first_token_s: cold_first.map(|pairs| pairs.ours()),
        })
    }

    /// Seconds to load, and to the first token; or why a start cannot be cold. Another
    /// process may open the file at any time, between two starts as well.
    async fn starts(
        &mut self,
        prompt: &[u32],
        cold: bool,
    ) -> Result<Result<(Pairs, Pairs), String>> {
        let task = Task {
            prompts: vec![prompt.len()],
            gen_tokens: 1,
        };
        let asked = self.asked(self.threads());
        let (mut load, mut first) = (Pairs::default(), Pairs::default());
        let all = Whose::Tree(std::process::id());
        let name = match cold {
            true => "cold start",
            false => "start",
        };
        for round in 0..=self.plan.runs {
            self.gate.say(name, round, self.plan.runs);
            let ready = |session: &Self| match cold {
                true => session.drop_file(),
                false => Ok(()),
            };
            if let Err(why) = ready(self) {
                return Ok(Err(why));
            }
            let ours = async || once::start(&task).await;
            let ours = self.gate.counted(all, !cold, ours).await?;
            let theirs = match &self.program {
                Some(program) => {
                    if let Err(why) = ready(self) {
                        return Ok(Err(why));
                    }
                    let start = async || fresh_peer(program, &asked, prompt).await;
                    Some(self.gate.counted(all, !cold, start).await?)
                }
                None => None,
            };
            // The first brings the file, or the programs, into memory.
            if round == 0 {
                continue;
            }
            load.ours.push(ours.load_s);
            first.ours.push(ours.first_token_s);
            if let Some((load_s, first_token_s, about)) = theirs {
                load.peer.push(load_s);
                first.peer.push(first_token_s);
                self.about = Some(about);
            }
        }
        Ok(Ok((load, first)))
    }

    /// Gets the model's file out of the system's cache; says why that cannot be.
    fn drop_file(&self) -> Result<(), String> {
        let told = |error: std::io::Error| error.to_string();
        let file = File::open(&self.plan.path).map_err(told)?;
        page_cache::drop_cached(&file).map_err(told)?;
        let (present, pages) = page_cache::cached_pages(&file).map_err(told)?;
        match present * 100 > pages {
            true => Err(format!(
                "{} % of the file stayed in memory; another process has it open",
                present * 100 / pages
            )),
            false => Ok(()),
        }
    }

    /// Peak memory of new processes that run every prompt once.
    async fn memory(&mut self, prompts: &[Vec<u32>]) -> Result<MemoryUse> {
        let plan = self.plan;
        self.gate.say("memory", 1, 1);
        let task = Task {
            prompts: plan.prompts.clone(),
            gen_tokens: plan.gen_tokens,
        };
        let Once {
            peak_bytes,
            kv_bytes,
            ..
        } = once::start(&task).await?;
        let mut pairs = Pairs {
            ours: vec![peak_bytes as f64],
            peer: Vec::new(),
        };
        let mut theirs = None;
        if let Some(program) = &self.program {
            let (mut peer, _) = Peer::start(program, &self.asked(self.threads())).await?;
            for prompt in prompts {
                let gen_tokens = match prompt.len() == plan.shortest() {
                    true => plan.gen_tokens,
                    false => 1,
                };
                peer.run(prompt, gen_tokens).await?;
            }
            let (peak, interpreter) = peer.peak_bytes();
            self.about = Some(peer.about().clone());
            peer.end().await;
            let net = peak.saturating_sub(interpreter);
            pairs.peer.push(net as f64);
            theirs = Some((net, interpreter));
        }
        self.measures
            .push(pairs.measure("peak memory", Unit::Bytes));
        let needed = plan.file_bytes + kv_bytes;
        Ok(MemoryUse {
            peak_bytes,
            file_bytes: plan.file_bytes,
            kv_bytes,
            share: peak_bytes as f64 / needed as f64,
            peer_bytes: theirs.map(|(net, _)| net),
            peer_interpreter_bytes: theirs.map(|(_, interpreter)| interpreter),
        })
    }

    /// Warm runs of loaded models.
    async fn speeds(&mut self, prompt: &dyn Fn(usize) -> Vec<u32>) -> Result<Speeds> {
        let plan = self.plan;
        self.gate.say("loading", 1, 1);
        let model = tokio::task::block_in_place(|| Model::open(&plan.path, &plan.options))
            .map_err(|error| CliError::new(ExitCode::ModelFile, chain(&error)))?;
        let peer = match &self.program {
            Some(program) => Some(Peer::start(program, &self.asked(self.threads())).await?.0),
            None => None,
        };
        self.about = peer.as_ref().map(|peer| peer.about().clone());
        let mut speeds = Speeds {
            load_s: Some(model.load_time().as_secs_f64()),
            threads: Some(model.threads()),
            ..Speeds::default()
        };
        let mut sides = Sides { model, peer };
        for len in plan.prompts.iter().filter(|_| plan.wants(What::Prompt)) {
            let tokens = prompt(*len);
            let name = format!("prompt {len}");
            let runs = self.rounds(&mut sides, &name, &tokens, 1, false).await?;
            let pairs = runs.map(|run| *len as f64 / run.first.as_secs_f64());
            speeds.prompts.push((*len, pairs));
        }
        if plan.wants(What::Generate) {
            let tokens = prompt(plan.shortest());
            let name = format!("generate {}", plan.gen_tokens);
            let runs = self
                .rounds(&mut sides, &name, &tokens, plan.gen_tokens, true)
                .await?;
            let steps = (plan.gen_tokens - 1) as f64;
            let generated = runs.map(|run| steps / run.rest.as_secs_f64());
            let whole = |run: &Timed| (run.first + run.rest).as_secs_f64();
            speeds.whole = Some(runs.map(|run| plan.gen_tokens as f64 / whole(run)));
            speeds.decode = decode_rate(&sides.model, &generated, &runs.stream);
            speeds.generated = Some(generated);
        }
        if let Some(peer) = sides.peer {
            peer.end().await;
        }
        Ok(speeds)
    }

    /// One measure: a warm-up of each side, then the rounds. With `stream` a plain read of
    /// the weights follows each of our runs.
    async fn rounds(
        &mut self,
        sides: &mut Sides,
        name: &str,
        prompt: &[u32],
        gen_tokens: usize,
        stream: bool,
    ) -> Result<Rounds> {
        let stop = self.stop;
        let Sides { model, peer } = sides;
        self.gate.say(name, 0, self.plan.runs);
        let warm_up = ours(model, prompt, gen_tokens, 1, stop)?;
        let repeats = repeats(warm_up.first + warm_up.rest);
        let mut peer_repeats = 1;
        if let Some(peer) = peer {
            let warm_up = theirs(peer, prompt, gen_tokens, 1).await?;
            peer_repeats = self::repeats(warm_up.first + warm_up.rest);
        }
        let read = match stream {
            true => model.stream_weights().map_or(0, self::repeats),
            false => 0,
        };
        let mut rounds = Rounds::default();
        for round in 1..=self.plan.runs {
            self.gate.say(name, round, self.plan.runs);
            let run = async || ours(model, prompt, gen_tokens, repeats, stop);
            rounds
                .ours
                .push(self.gate.counted(Whose::Ours, true, run).await?);
            if read > 0 {
                let run = async || Ok(streamed(model, read));
                rounds
                    .stream
                    .push(self.gate.counted(Whose::Ours, true, run).await?);
            }
            if let Some(peer) = peer {
                let whose = Whose::Tree(peer.id());
                let run = async || theirs(peer, prompt, gen_tokens, peer_repeats).await;
                rounds.peer.push(self.gate.counted(whose, true, run).await?);
            }
        }
        Ok(rounds)
    }
}

/// Mean times of the runs of one turn.
#[derive(Clone, Copy)]
struct Timed {
    first: Duration,
    rest: Duration,
}

#[derive(Default)]
struct Rounds {
    ours: Vec<Timed>,
    peer: Vec<Timed>,
    /// Time of one plain read of the weights, in each round.
    stream: Vec<Duration>,
}

impl Rounds {
    fn map(&self, value: impl Fn(&Timed) -> f64) -> Pairs {
        Pairs {
            ours: self.ours.iter().map(&value).collect(),
            peer: self.peer.iter().map(&value).collect(),
        }
    }
}

/// How often a run of this length is done in a turn.
fn repeats(run: Duration) -> u32 {
    let times = RUN.as_secs_f64() / run.as_secs_f64().max(1e-6);
    times.ceil().clamp(1.0, 10_000.0) as u32
}

fn ours(
    model: &mut Model,
    prompt: &[u32],
    gen_tokens: usize,
    repeats: u32,
    stop: &CancellationToken,
) -> Result<Timed> {
    let stopped = || stop.is_cancelled();
    let runs = tokio::task::block_in_place(|| {
        (0..repeats)
            .map(|_| model.bench_run(prompt, gen_tokens, &stopped))
            .collect::<Result<Vec<BenchRun>, EngineError>>()
    });
    let runs = runs.map_err(|error| match error {
        EngineError::Cancelled => CliError::new(ExitCode::Interrupted, "stopped"),
        error => CliError::new(ExitCode::Request, chain(&error)),
    })?;
    Ok(Timed {
        first: runs.iter().map(|run| run.first).sum::<Duration>() / repeats,
        rest: runs.iter().map(|run| run.rest).sum::<Duration>() / repeats,
    })
}

async fn theirs(peer: &mut Peer, prompt: &[u32], gen_tokens: usize, repeats: u32) -> Result<Timed> {
    let (mut first, mut rest) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..repeats {
        let timings = peer.run(prompt, gen_tokens).await?;
        first += timings.first();
        rest += timings.rest();
    }
    Ok(Timed {
        first: first / repeats,
        rest: rest / repeats,
    })
}

fn streamed(model: &Model, repeats: u32) -> Duration {
    let all = tokio::task::block_in_place(|| {
        (0..repeats)
            .filter_map(|_| model.stream_weights())
            .sum::<Duration>()
    });
    all / repeats.max(1)
}

/// Seconds to load and to the first token, of a peer that is started for it.
async fn fresh_peer(program: &Program, asked: &Asked, prompt: &[u32]) -> Result<(f64, f64, About)> {
    let (mut peer, begun) = Peer::start(program, asked).await?;
    let load = begun.elapsed();
    peer.run(prompt, 1).await?;
    let first = begun.elapsed();
    let about = peer.about().clone();
    peer.end().await;
    Ok((load.as_secs_f64(), first.as_secs_f64(), about))
}

/// `None` where the weights cannot be read plainly.
fn decode_rate(model: &Model, generated: &Pairs, stream: &[Duration]) -> Option<DecodeRate> {
    let bytes_per_token = model.weight_bytes();
    let weights = bytes_per_token as f64;
    let rates = Pairs {
        ours: generated.ours.iter().map(|tps| tps * weights).collect(),
        peer: stream
            .iter()
            .map(|read| weights / read.as_secs_f64())
            .collect(),
    };
    Some(DecodeRate {
        bytes_per_token,
        bytes_per_s: rates.ours(),
        stream_bytes_per_s: rates.peer()?,
        share: rates.ratio()?,
    })
}

/// Lets only quiet runs count.
struct Gate {
    /// A run that is not quiet is repeated, and in the end refused.
    strict: bool,
    /// The worst that was beside a counted run; `None` where the system does not say.
    seen: Option<quiet::Beside>,
    bar: ProgressBar,
}

impl Gate {
    fn new(plan: &Plan) -> Gate {
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Gate {
            strict: plan.against.is_some() && !plan.allow_load,
            seen: None,
            bar,
        }
    }

    /// Tells what is going on. Drawn between runs only: a spinner that turns is a load too.
    fn say(&self, name: &str, round: usize, rounds: usize) {
        self.bar.set_message(match round {
            0 => format!("{name}: warm-up"),
            _ => format!("{name}: {round} of {rounds}"),
        });
        self.bar.tick();
    }

    /// Does `run` until it was quiet beside it, ten times at most. Where loads are allowed
    /// the first run counts; one that is not `gated` is not even looked at.
    async fn counted<T>(
        &mut self,
        whose: Whose,
        gated: bool,
        mut run: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        const TRIES: u32 = 10;
        if !gated {
            return run().await;
        }
        let strict = self.strict;
        let mut least = f64::INFINITY;
        for attempt in 1..=TRIES {
            tokio::time::sleep(SETTLE).await;
            let before = Sample::now(whose);
            let value = run().await?;
            let beside = Sample::now(whose)
                .zip(before)
                .map(|(after, before)| after.since(&before));
            let Some(beside) = beside else {
                if strict {
                    return Err(CliError::new(
                        ExitCode::Failed,
                        "compare: this system does not say who uses the processor",
                    )
                    .hint("--allow-load reports without knowing"));
                }
                return Ok(value);
            };
            if beside.quiet || !strict {
                self.note_beside(beside);
                return Ok(value);
            }
            least = least.min(beside.foreign);
            self.bar.set_message(format!(
                "waiting: other processes use {:.2} cores (try {attempt} of {TRIES})",
                beside.foreign
            ));
            self.bar.tick();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Err(CliError::new(
            ExitCode::Failed,
            format!(
                "compare: other processes used {least:.2} cores or more during each of {TRIES} \
                 tries, and {} is the most that lets figures count",
                quiet::MOST
            ),
        )
        .hint("end them, or report all the same with --allow-load"))
    }

    fn note_beside(&mut self, beside: quiet::Beside) {
        let worst = self.seen.get_or_insert(quiet::Beside {
            foreign: 0.0,
            stolen: 0.0,
            quiet: true,
        });
        worst.foreign = worst.foreign.max(beside.foreign);
        worst.stolen = worst.stolen.max(beside.stolen);
        worst.quiet &= beside.quiet;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
