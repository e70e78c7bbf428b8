//! Models as the hub has them: every family against its GGUF file, against the definition,
//! and against candle's model over the very same folder; tokenizers against the library
//! that `tokenizer.json` is written for; and folders that are wrong.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::smol::smollm3;
use candle_transformers::models::{gemma2, gemma3, llama, mistral, phi3, qwen2, qwen3};
use common::hub::{Hub, save};
use common::plain::Plain;
use common::tiny::Tiny;
use llmpick_core::{GenerateRequest, Message, Prompt, Sampling};
use llmpick_engine::tokens::{Encode, Tokenizer};
use llmpick_engine::{EngineOptions, LoadErrorKind, Model, SUPPORTED, read_info, read_tokenizer};
use serde_json::{Value as Json, json};

fn open(path: &Path) -> Model {
    Model::open(path, &EngineOptions::default()).unwrap()
}

fn text(count: usize) -> String {
    let letters = common::tiny::prompt(count).into_iter();
    letters.map(|t| char::from(b' ' + (t % 95) as u8)).collect()
}

fn greedy(prompt: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        sampling: Sampling::greedy(),
        max_tokens: Some(max_tokens),
        logprobs: true,
        ..GenerateRequest::new(Prompt::Text(prompt.to_owned()))
    }
}

/// Log-probabilities of the tokens that a model thinks best, one after the other.
fn logprobs(model: &mut Model, prompt: &str, count: u32) -> Vec<f32> {
    let mut all = Vec::new();
    model
        .generate(&greedy(prompt, count), &|| false, &mut |piece| {
            all.extend(piece.logprobs)
        })
        .unwrap();
    all
}

fn nll(model: &mut Model, text: &str, window: usize) -> f64 {
    let found = model.perplexity(text, window, &mut |_, _| {}).unwrap();
    found.nll / found.tokens as f64
}

/// A tiny file of every family.
fn families() -> Vec<(&'static str, Tiny)> {
    let layers = |name: &str| match name {
        "gemma3" => 7,
        "smollm3" => 5,
        _ => 3,
    };
    let mut all: Vec<_> = SUPPORTED
        .iter()
        .map(|name| {
            let tiny = Tiny {
                layers: layers(name),
                tied: ["gemma2", "gemma3", "smollm3"].contains(name),
                ..Tiny::new(name)
            };
            (*name, tiny)
        })
        .collect();
    let mistral = Tiny {
        window: 64,
        ..Tiny::new("llama")
    };
    all.push(("mistral", mistral));
    all
}

#[test]
fn a_folder_gives_what_the_gguf_file_and_the_definition_give() {
    for (family, tiny) in families() {
        let home = tempfile::tempdir().unwrap();
        let gguf = tiny.write(home.path());
        let folder = Hub::default().write(&gguf);
        let (mut ours, mut other) = (open(&folder), open(&gguf));
        assert_eq!(ours.info().architecture, other.info().architecture);
        assert_eq!(ours.info().parameters, other.info().parameters);
        let text = text(200);
        let found = (nll(&mut ours, &text, 200), logprobs(&mut ours, &text, 5));
        let expected = (nll(&mut other, &text, 200), logprobs(&mut other, &text, 5));
        // GGUF stores the heads of these two in another order, so sums are in another order.
        if ["llama", "mistral", "smollm3"].contains(&family) {
            assert!((found.0 - expected.0).abs() < 1e-5, "{family}");
        } else {
            assert_eq!(found, expected, "{family}");
        }
        let tokens = ours.prompt_tokens(&Prompt::Text(text)).unwrap();
        let exact = Plain::open(&gguf).log_probabilities(&tokens);
        let scored = 100..199;
        let count = scored.len() as f64;
        let plain: f64 = scored
            .map(|at| -exact[at][tokens[at + 1] as usize])
            .sum::<f64>();
        assert!((found.0 - plain / count).abs() < 2e-4, "{family}");
    }
}

/// Candle's model of a folder, from the same `config.json` and the same weights. Gives the
/// logits after the last token.
fn stock(folder: &Path, tokens: &[u32]) -> Vec<f32> {
    let file = fs::read(folder.join("model.safetensors")).unwrap();
    let weights = VarBuilder::from_buffered_safetensors(file, DType::F32, &Device::Cpu).unwrap();
    let text = fs::read_to_string(folder.join("config.json")).unwrap();
    fn config<T: serde::de::DeserializeOwned>(text: &str) -> T {
        serde_json::from_str(text).unwrap()
    }
    let input = Tensor::new(tokens, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let kind: Json = serde_json::from_str(&text).unwrap();
    let logits = match kind["model_type"].as_str().unwrap() {
        "llama" => {
            let config: llama::LlamaConfig = config(&text);
            let config = config.into_config(false);
            let mut cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
            let model = llama::Llama::load(weights, &config).unwrap();
            model.forward(&input, 0, &mut cache)
        }
        "mistral" => mistral::Model::new(&config(&text), weights)
            .unwrap()
            .forward(&input, 0),
        "qwen2" => qwen2::ModelForCausalLM::new(&config(&text), weights)
            .unwrap()
            .forward(&input, 0),
        "qwen3" => qwen3::ModelForCausalLM::new(&config(&text), weights)
            .unwrap()
            .forward(&input, 0),
        "gemma2" => gemma2::Model::new(false, &config(&text), weights)
            .unwrap()
            .forward(&input, 0),
        "gemma3_text" => {
            // Its cache takes one position at a time.
            let mut model = gemma3::Model::new(false, &config(&text), weights).unwrap();
            let one = |at| input.narrow(1, at, 1).unwrap();
            let last = tokens.len() - 1;
            for at in 0..last {
                model.forward(&one(at), at).unwrap();
            }
            model.forward(&one(last), last)
        }
        "phi3" => phi3::Model::new(&config(&text), weights)
            .unwrap()
            .forward(&input, 0),
        "smollm3" => smollm3::ModelForCausalLM::new(&config(&text), weights)
            .unwrap()
            .forward(&input, 0),
        other => panic!("{other}"),
    };
    let logits = logits.unwrap().flatten_all().unwrap();
    logits.to_vec1().unwrap()
}

/// The names and the shapes are those that other readers of such folders want, and the
/// numbers are theirs.
#[test]
fn candle_reads_the_same_folder_and_agrees() {
    for (family, mut tiny) in families() {
        // Inside of every window, of which candle's models have other notions.
        tiny.window = if tiny.window > 0 { 64 } else { 0 };
        let home = tempfile::tempdir().unwrap();
        let folder = Hub::default().write(&tiny.write(home.path()));
        let mut model = open(&folder);
        let text = text(40);
        let tokens = model.prompt_tokens(&Prompt::Text(text.clone())).unwrap();
        let logits = stock(&folder, &tokens);
        let best = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = logits.iter().map(|x| (x - best).exp()).sum();
        let ours = logprobs(&mut model, &text, 1)[0];
        assert!(
            (ours + sum.ln()).abs() < 1e-4,
            "{family}: {ours} {}",
            -sum.ln()
        );
    }
}

#[test]
fn weights_in_16_bits_and_in_several_files_are_the_same_weights() {
    let home = tempfile::tempdir().unwrap();
    let gguf = Tiny::new("qwen2").write(home.path());
    let whole = Hub::default().write_to(&gguf, &home.path().join("whole"));
    let text = text(100);
    let exact = nll(&mut open(&whole), &text, 100);
    let shards = Hub {
        shards: 3,
        ..Hub::default()
    };
    let parts = shards.write_to(&gguf, &home.path().join("parts"));
    let index = parts.join("model.safetensors.index.json");
    let second = parts.join("model-00002-of-00003.safetensors");
    for path in [&parts, &index, &second] {
        assert_eq!(nll(&mut open(path), &text, 100), exact);
    }
    assert_eq!(
        read_info(&parts).unwrap().parameters,
        read_info(&gguf).unwrap().parameters
    );
    for (dtype, label, tolerance) in [(DType::F16, "F16", 1e-3), (DType::BF16, "BF16", 1e-2)] {
        let small = Hub {
            dtype,
            ..Hub::default()
        };
        let small = small.write_to(&gguf, &home.path().join(label));
        let found = nll(&mut open(&small), &text, 100);
        assert!((found - exact).abs() < tolerance, "{label}");
        assert!(found != exact, "{label}");
        let info = read_info(&small).unwrap();
        assert!(
            info.quantisation.starts_with(label),
            "{}",
            info.quantisation
        );
        assert_eq!(info.name, label);
        // One of the files may be named too.
        assert_eq!(
            nll(&mut open(&small.join("model.safetensors")), &text, 100),
            found
        );
    }
}

/// What GGUF has as settings and tensors is a formula in `config.json`.
#[test]
fn rope_is_scaled_as_the_gguf_file_has_it() {
    let home = tempfile::tempdir().unwrap();
    let text = text(200);
    let check = |what: &str, tiny: Tiny, rope: &[(&'static str, Json)]| {
        let folder = home.path().join(what);
        fs::create_dir(&folder).unwrap();
        let gguf = tiny.write(&folder);
        let hub = Hub {
            config: rope.to_vec(),
            ..Hub::default()
        };
        let found = nll(&mut open(&hub.write(&gguf)), &text, 200);
        let expected = nll(&mut open(&gguf), &text, 200);
        assert!(
            (found - expected).abs() < 1e-5,
            "{what}: {found} {expected}"
        );
        let plain = nll(&mut open(&Hub::default().write(&gguf)), &text, 200);
        assert!((found - plain).abs() > 1e-4, "{what} changes nothing");
    };
    let kind = |kind: &str| ("rope.scaling.type", Value::String(kind.to_owned()));
    let factor = ("rope.scaling.factor", Value::F32(4.0));
    let original = |n: u32| ("rope.scaling.original_context_length", Value::U32(n));
    let qwen = |more: Vec<(&'static str, Value)>| Tiny {
        more,
        ..Tiny::new("qwen2")
    };
    check(
        "linear",
        qwen(vec![kind("linear"), factor.clone()]),
        &[("rope_scaling", json!({"type": "linear", "factor": 4.0}))],
    );
    let yarn = vec![kind("yarn"), factor, original(64)];
    let scaling = json!({"rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 64});
    check("yarn", qwen(yarn.clone()), &[("rope_scaling", scaling)]);
    // As version 5 of transformers writes it, with the base inside.
    let parameters = json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 50_000.0,
        "original_max_position_embeddings": 64, "attention_factor": 1.138_629_436_111_989});
    check(
        "version 5",
        qwen(yarn),
        &[("rope_parameters", parameters), ("rope_theta", Json::Null)],
    );
    let llama3 = |factors: Vec<f32>| Tiny {
        vectors: vec![("rope_freqs.weight", factors)],
        ..Tiny::new("llama")
    };
    // By hand: pair i turns 64 · 50000^(−i/8) / 2π times in the training's context, 10.2,
    // 2.63, 0.68 … times; from 2 on nothing is divided, up to 0.5 all of it.
    let turns = |i: i32| 64.0 * 50_000f64.powf(-f64::from(i) / 8.0) / std::f64::consts::TAU;
    let share = (turns(2) - 0.5) / 1.5;
    let mixed = 1.0 / ((1.0 - share) / 8.0 + share);
    let factors = vec![1.0, 1.0, mixed as f32, 8.0, 8.0, 8.0, 8.0, 8.0];
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.5,
        "high_freq_factor": 2.0, "original_max_position_embeddings": 64});
    check("llama3", llama3(factors), &[("rope_scaling", scaling)]);
    let list = |from: f32, by: f32| (0..8).map(|i| from + by * i as f32).collect::<Vec<f32>>();
    // √(1 + ln(256 / 128) / ln 128)
    let attention = (1.0 + 2f64.ln() / 128f64.ln()).sqrt() as f32;
    let phi = Tiny {
        more: vec![
            original(128),
            ("rope.scaling.attn_factor", Value::F32(attention)),
        ],
        vectors: vec![
            ("rope_factors_short.weight", list(1.0, 0.1)),
            ("rope_factors_long.weight", list(1.5, 0.7)),
        ],
        ..Tiny::new("phi3")
    };
    let scaling = json!({"type": "longrope", "short_factor": list(1.0, 0.1),
        "long_factor": list(1.5, 0.7)});
    let own = ("original_max_position_embeddings", json!(128));
    check("longrope", phi, &[("rope_scaling", scaling), own]);
}

#[test]
fn windows_and_bounds_are_those_of_the_configuration() {
    let home = tempfile::tempdir().unwrap();
    let text = text(200);
    let check = |what: &str, tiny: Tiny, config: &[(&'static str, Json)]| {
        let folder = home.path().join(what);
        fs::create_dir(&folder).unwrap();
        let gguf = tiny.write(&folder);
        let hub = Hub {
            config: config.to_vec(),
            ..Hub::default()
        };
        let found = nll(&mut open(&hub.write(&gguf)), &text, 200);
        let expected = nll(&mut open(&gguf), &text, 200);
        assert!(
            (found - expected).abs() < 1e-5,
            "{what}: {found} {expected}"
        );
    };
    let gemma3 = || Tiny {
        layers: 4,
        tied: true,
        ..Tiny::new("gemma3")
    };
    let pattern = |n| Tiny {
        more: vec![("attention.sliding_window_pattern", Value::U32(n))],
        ..gemma3()
    };
    check(
        "every third",
        pattern(3),
        &[("sliding_window_pattern", json!(3))],
    );
    let kinds = ["sliding_attention", "full_attention"];
    let types = json!([kinds[0], kinds[1], kinds[0], kinds[1]]);
    check("by name", pattern(2), &[("layer_types", types.clone())]);
    check(
        "none",
        pattern(1),
        &[("layer_types", json!(vec![kinds[1]; 4]))],
    );
    let plain = ("sliding_window", Json::Null);
    check("llama", Tiny::new("llama"), &[plain]);
    let wide = |bound: f32| Tiny {
        more: vec![
            ("attn_logit_softcapping", Value::F32(bound)),
            ("final_logit_softcapping", Value::F32(bound)),
        ],
        tied: true,
        ..Tiny::new("gemma2")
    };
    // GGUF cannot say "none" for this family; a bound that far away bends nothing.
    let none = [
        ("attn_logit_softcapping", Json::Null),
        ("final_logit_softcapping", Json::Null),
    ];
    check("no bounds", wide(1e4), &none);
    check("bounds", wide(2.0), &[]);
    let scaled = Tiny {
        more: vec![("attention.scale", Value::F32(0.125))],
        ..gemma3()
    };
    check("scale", scaled, &[("query_pre_attn_scalar", json!(64))]);
    // Since its version 5, transformers writes the RoPE of both kinds of layers so.
    let rope = json!({"full_attention": {"rope_type": "default", "rope_theta": 50_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}});
    let parameters = [
        ("rope_parameters", rope),
        ("rope_theta", Json::Null),
        ("rope_local_base_freq", Json::Null),
    ];
    check("version 5", gemma3(), &parameters);
}

/// A model that also sees: the part that reads has its own configuration and its own names.
#[test]
fn of_a_model_that_also_sees_the_text_part_runs() {
    let home = tempfile::tempdir().unwrap();
    let tiny = Tiny {
        tied: true,
        ..Tiny::new("gemma3")
    };
    let folder = Hub::default().write(&tiny.write(home.path()));
    let text = text(60);
    let expected = nll(&mut open(&folder), &text, 60);
    let inner = read_json(&folder, "config.json");
    let outer = json!({"model_type": "gemma3", "text_config": inner, "vision_config": {}});
    save(&folder, "config.json", &outer);
    let weights = folder.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    let mut named: HashMap<String, Tensor> = tensors
        .into_iter()
        .map(|(name, tensor)| (format!("language_model.{name}"), tensor))
        .collect();
    let other = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    named.insert("vision_tower.embeddings.weight".to_owned(), other);
    candle_core::safetensors::save(&named, &weights).unwrap();
    assert_eq!(nll(&mut open(&folder), &text, 60), expected);
}

fn read_json(folder: &Path, name: &str) -> Json {
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

const PLAIN: Encode = Encode {
    add_bos: false,
    parse_special: false,
};

/// Texts that tokenizers stumble over, and prose.
fn texts() -> Vec<String> {
    let fixture: Json = serde_json::from_str(include_str!("fixtures/tokens.json")).unwrap();
    let mut texts = vec![
        fixture["text"].as_str().unwrap().to_owned(),
        " leading and trailing ".to_owned(),
        "tab\tand  two   three    four spaces\n\n\nlines\r\n".to_owned(),
        "0 12 345 6789".to_owned(),
        "漢字かな 가나다 😀👩‍👩‍👧 naïve e\u{301}".to_owned(),
        "<|im_start|>user<|im_end|><start_of_turn>".to_owned(),
        "aaaaaaaaaaaaaaaaaaaaa ========== .........".to_owned(),
    ];
    let prose = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/eighty-days.txt"),
    );
    texts.push(prose.unwrap().chars().take(20_000).collect());
    texts
}

/// The tokenizer of a real vocabulary as `tokenizer.json` against the same as GGUF, and
/// against the library whose program that file is.
#[test]
fn real_vocabularies_are_read_from_tokenizer_json_as_from_gguf() {
    for name in [common::SMOLLM2, common::QWEN_SMALL, common::GEMMA] {
        let Some(gguf) = common::model(name) else {
            continue;
        };
        let home = tempfile::tempdir().unwrap();
        let folder = weightless(&gguf, home.path());
        let ours = read_tokenizer(&folder).unwrap();
        let file = folder.join("tokenizer.json");
        let theirs = tokenizers::Tokenizer::from_file(file).unwrap();
        let gguf = read_tokenizer(&gguf).unwrap();
        assert_eq!(ours.vocab_size(), gguf.vocab_size());
        assert_eq!((ours.bos(), ours.eos()), (gguf.bos(), gguf.eos()));
        assert_eq!(ours.end_of_generation(), gguf.end_of_generation(), "{name}");
        assert_eq!(ours.adds_bos(), gguf.adds_bos(), "{name}");
        for text in texts() {
            let ids = ours.encode(&text, PLAIN).unwrap();
            // A user's text never becomes a control token here, and always does there.
            if !text.contains("<|im_start|>") {
                let expected = theirs.encode(text.as_str(), false).unwrap();
                same(name, "the library", &ours, &ids, expected.get_ids());
            }
            // Runs of spaces longer than any token are cut from the left there, and put
            // together by merges here, as the library does.
            let run = " ".repeat(32);
            let text = match name {
                common::GEMMA => text.replace(&run, ""),
                _ => text,
            };
            let ids = ours.encode(&text, PLAIN).unwrap();
            same(
                name,
                "the GGUF file",
                &ours,
                &ids,
                &gguf.encode(&text, PLAIN).unwrap(),
            );
            assert_eq!(ours.decode(&ids), gguf.decode(&ids));
        }
    }
}

fn same(name: &str, what: &str, tokenizer: &Tokenizer, ours: &[u32], theirs: &[u32]) {
    let Some(at) = (0..ours.len().max(theirs.len())).find(|at| ours.get(*at) != theirs.get(*at))
    else {
        return;
    };
    let show = |ids: &[u32]| -> Vec<String> {
        let ids = ids[at.saturating_sub(2).min(ids.len())..].iter().take(8);
        ids.map(|id| tokenizer.piece(*id).unwrap()).collect()
    };
    panic!("{name}, {what}: {:?} and {:?}", show(ours), show(theirs));
}

/// A folder with the vocabulary of a real model and the weights of a tiny one, which
/// [`read_tokenizer`] has no use for.
fn weightless(gguf: &Path, folder: &Path) -> PathBuf {
    let mut file = BufReader::new(File::open(gguf).unwrap());
    let metadata = Content::read(&mut file).unwrap().metadata;
    let folder = Hub::default().write_to(&Tiny::new("qwen2").write(folder), &folder.join("hub"));
    common::hub::save_tokenizer(&folder, &metadata);
    let mut config = read_json(&folder, "config.json");
    config["vocab_size"] = json!(1 << 20);
    config["eos_token_id"] = Json::Null;
    config["bos_token_id"] = Json::Null;
    save(&folder, "config.json", &config);
    folder
}

/// Real weights: what the GGUF file says in words, a folder of the same weights says too.
#[test]
fn a_real_model_says_the_same_from_a_folder() {
    let Some(gguf) = common::model(common::SMOLLM2) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let hub = Hub {
        dtype: DType::BF16,
        shards: 2,
        ..Hub::default()
    };
    let folder = hub.write_to(&gguf, &home.path().join("SmolLM2"));
    let (mut ours, mut other) = (open(&folder), open(&gguf));
    assert_eq!(ours.info().layers, 30);
    assert_eq!(ours.info().name, "SmolLM2");
    assert!(ours.info().chat_template);
    let prompt = Prompt::Chat(vec![Message::user("What is the capital of France?")]);
    assert_eq!(
        ours.prompt_tokens(&prompt).unwrap(),
        other.prompt_tokens(&prompt).unwrap()
    );
    let tokens = ours.prompt_tokens(&prompt).unwrap();
    let request = GenerateRequest {
        prompt,
        ..greedy("", 24)
    };
    let mut said = String::new();
    ours.generate(&request, &|| false, &mut |piece| {
        said.push_str(&piece.text);
    })
    .unwrap();
    assert!(said.contains("Paris"), "{said}");
    let ids = ours.tokenizer().encode(&said, PLAIN).unwrap();
    // Candle's model of the same folder would say each of these next, too.
    let mut stock = StockLlama::open(&folder);
    let (mut input, mut at) = (tokens.as_slice(), 0);
    for id in &ids {
        assert_eq!(stock.best(input, at), *id, "{said}");
        at += input.len();
        input = std::slice::from_ref(id);
    }
    let text = &texts().pop().unwrap()[..4000];
    let (ours, other) = (nll(&mut ours, text, 256), nll(&mut other, text, 256));
    // Weights are rounded to BF16 on their way into the folder.
    assert!((ours - other).abs() < 0.01 * other, "{ours} {other}");
}

/// Candle's llama over a folder of several files.
struct StockLlama {
    model: llama::Llama,
    cache: llama::Cache,
}

impl StockLlama {
    fn open(folder: &Path) -> StockLlama {
        let mut tensors = HashMap::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "safetensors") {
                tensors.extend(candle_core::safetensors::load(path, &Device::Cpu).unwrap());
            }
        }
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let config: llama::LlamaConfig =
            serde_json::from_value(read_json(folder, "config.json")).unwrap();
        let config = config.into_config(false);
        StockLlama {
            model: llama::Llama::load(weights, &config).unwrap(),
            cache: llama::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap(),
        }
    }

    /// The likeliest token after some more.
    fn best(&mut self, tokens: &[u32], at: usize) -> u32 {
        let input = Tensor::new(tokens, &Device::Cpu).unwrap();
        let input = input.unsqueeze(0).unwrap();
        let logits = self.model.forward(&input, at, &mut self.cache).unwrap();
        let best = logits.argmax(1).unwrap().to_vec1::<u32>().unwrap();
        best[0]
    }
}

/// Opens a folder that was changed, and gives what is wrong with it.
fn refusal(change: impl FnOnce(&Path)) -> String {
    let home = tempfile::tempdir().unwrap();
    let folder = Hub::default().write(&Tiny::new("llama").write(home.path()));
    change(&folder);
    let error = Model::open(&folder, &EngineOptions::default())
        .err()
        .unwrap();
    match &error.kind {
        LoadErrorKind::Tokenizer(inner) => inner.to_string(),
        kind => kind.to_string(),
    }
}

fn with(name: &'static str, pointer: &'static str, value: Json) -> String {
    refusal(|folder| {
        let mut all = read_json(folder, name);
        match all.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => all[&pointer[1..]] = value,
        }
        save(folder, name, &all);
    })
}

fn said(found: String, expected: &str) {
    assert!(found.contains(expected), "{found:?} and not {expected:?}");
}

#[test]
fn configurations_that_cannot_be_followed_are_refused_by_name() {
    let config = |key, value| with("config.json", key, value);
    for (key, value, expected) in [
        ("/model_type", json!("mamba"), "`mamba`"),
        ("/model_type", Json::Null, "no `model_type`"),
        (
            "/quantization_config",
            json!({"quant_method": "awq"}),
            "`awq`",
        ),
        ("/hidden_size", json!(0), "`hidden_size`"),
        ("/hidden_size", json!("wide"), "`hidden_size`"),
        ("/num_hidden_layers", json!(16_000_000), "fewer tensors"),
        (
            "/num_attention_heads",
            json!(3),
            "q_proj.weight` has the shape",
        ),
        ("/hidden_act", json!("relu"), "`relu`"),
        (
            "/rope_scaling",
            json!({"rope_type": "dynamic"}),
            "`dynamic`",
        ),
        (
            "/rope_scaling",
            json!({"rope_type": "linear"}),
            "no `factor`",
        ),
        ("/rope_scaling", json!("much"), "`rope_scaling`"),
        ("/rms_norm_eps", json!(-1.0), "epsilon"),
        ("/rope_theta", json!(0.0), "RoPE base"),
        (
            "/attention_bias",
            json!(true),
            "`model.layers.0.self_attn.q_proj.bias` is missing",
        ),
        (
            "/tie_word_embeddings",
            json!("yes"),
            "`tie_word_embeddings`",
        ),
        (
            "/layer_types",
            json!(vec!["linear_attention"; 3]),
            "`full_attention`",
        ),
        ("/layer_types", json!(["full_attention"]), "`layer_types`"),
        (
            "/layer_types",
            json!(["sliding_attention", "full_attention", "full_attention"]),
            "no `sliding_window`",
        ),
        ("/vocab_size", json!(200), "259 tokens"),
        (
            "/vocab_size",
            json!(300),
            "`model.embed_tokens.weight` has the shape",
        ),
        ("/eos_token_id", json!(5000), "end_token_ids"),
        ("/eos_token_id", json!([1, "x"]), "`eos_token_id`"),
    ] {
        said(config(key, value), expected);
    }
    said(
        refusal(|folder| fs::write(folder.join("config.json"), "[".repeat(100_000)).unwrap()),
        "`config.json` cannot be read",
    );
    for missing in ["config.json", "tokenizer.json", "model.safetensors"] {
        let found = refusal(|folder| fs::remove_file(folder.join(missing)).unwrap());
        said(found, &format!("no `{missing}`"));
        let found = refusal(|folder| fs::write(folder.join(missing), "").unwrap());
        said(found, &format!("`{missing}` is empty"));
    }
}

#[test]
fn tokenizers_that_cannot_be_followed_are_refused_by_name() {
    let tokenizer = |pointer, value| with("tokenizer.json", pointer, value);
    for (pointer, value, expected) in [
        ("/model/type", json!("Unigram"), "`Unigram`"),
        ("/model/dropout", json!(0.1), "dropout"),
        ("/model/vocab/A", json!(3), "share the id 3"),
        (
            "/model/vocab/A",
            json!(4_000_000_000u32),
            "embeddings for 259",
        ),
        ("/model/vocab", json!([]), "`tokenizer.json` cannot be read"),
        ("/model/merges", json!(["only"]), "merge 0"),
        ("/model/merges", json!([["A", "nowhere"]]), "merge 0"),
        ("/normalizer", json!({"type": "Lowercase"}), "`Lowercase`"),
        (
            "/pre_tokenizer",
            json!({"type": "Whitespace"}),
            "`Whitespace`",
        ),
        (
            "/pre_tokenizer/pretokenizers/0/pattern/Regex",
            json!("(a+)+$"),
            "`(a+)+$`",
        ),
        (
            "/pre_tokenizer/pretokenizers/0/behavior",
            json!("Removed"),
            "removes text",
        ),
        ("/added_tokens/0/id", json!(4), "share the id 4"),
        ("/added_tokens/0/lstrip", json!(true), "looks at"),
    ] {
        said(tokenizer(pointer, value), expected);
    }
    let own = |pointer, value| with("tokenizer_config.json", pointer, value);
    said(own("/bos_token", json!("<nowhere>")), "`bos_token`");
    said(
        own("/chat_template", json!([{"name": "x", "template": "y"}])),
        "`default`",
    );
    said(own("/chat_template", json!(5)), "`chat_template`");
    said(own("/chat_template", json!("{% if")), "chat template");
}

#[test]
fn weights_that_contradict_themselves_or_the_configuration_are_refused() {
    let tensors = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        refusal(|folder| {
            let path = folder.join("model.safetensors");
            let mut all = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
            change(&mut all);
            candle_core::safetensors::save(&all, &path).unwrap();
        })
    };
    let zeros = |rows: usize, dtype| Tensor::zeros((rows, 64), dtype, &Device::Cpu).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let put = |tensor: Tensor| {
        tensors(&|all| {
            all.insert(name.to_owned(), tensor.clone());
        })
    };
    said(
        put(zeros(95, DType::F32)),
        &format!("`{name}` has the shape [95, 64]"),
    );
    said(
        put(zeros(96, DType::U8)),
        &format!("`{name}` is quantised as U8"),
    );
    said(put(zeros(96, DType::F64)), "F64");
    let nan = (zeros(96, DType::F32) + f64::NAN).unwrap();
    said(
        put(nan),
        &format!("`{name}` holds a number that is not finite in row 0"),
    );
    said(
        tensors(&|all| {
            all.remove(name);
        }),
        &format!("`{name}` is missing"),
    );
    said(
        tensors(&|all| {
            all.insert("model.extra.weight".to_owned(), zeros(1, DType::F32));
        }),
        "`model.extra.weight`",
    );
    let bytes = |change: &dyn Fn(&mut Vec<u8>)| {
        refusal(|folder| {
            let path = folder.join("model.safetensors");
            let mut all = fs::read(&path).unwrap();
            change(&mut all);
            fs::write(&path, all).unwrap();
        })
    };
    said(bytes(&|all| all.truncate(5)), "cut short");
    said(bytes(&|all| all.truncate(100)), "cut short");
    said(bytes(&|all| all.truncate(all.len() - 1)), "cut short");
    said(bytes(&|all| all.push(0)), "belong to no tensor");
    said(bytes(&|all| all[..8].fill(0xFF)), "no safetensors file");
    said(bytes(&|all| all[8] = b'x'), "header");
    said(
        bytes(&|all| all.splice(..0, *b"GGUF").for_each(drop)),
        "safetensors",
    );
}

#[test]
fn an_index_that_contradicts_its_files_is_refused() {
    let with = |change: &dyn Fn(&Path, &mut Json)| {
        let home = tempfile::tempdir().unwrap();
        let hub = Hub {
            shards: 2,
            ..Hub::default()
        };
        let folder = hub.write(&Tiny::new("qwen2").write(home.path()));
        let name = "model.safetensors.index.json";
        let mut index = read_json(&folder, name);
        change(&folder, &mut index["weight_map"]);
        save(&folder, name, &json!({"weight_map": index["weight_map"]}));
        let error = Model::open(&folder, &EngineOptions::default())
            .err()
            .unwrap();
        error.kind.to_string()
    };
    let first = "model-00001-of-00002.safetensors";
    said(
        with(&|_, map| map["model.norm.weight"] = json!("/etc/passwd")),
        "not in this folder",
    );
    said(
        with(&|_, map| map["model.norm.weight"] = json!("..")),
        "ordinary file",
    );
    said(
        with(&|_, map| map["nowhere"] = json!(first)),
        "the tensor `nowhere` is in `model-00001-of-00002.safetensors` by the index, and is nowhere",
    );
    said(
        with(&|folder, _| fs::remove_file(folder.join(first)).unwrap()),
        "no `model-00001-of-00002.safetensors`",
    );
    said(
        with(&|folder, _| {
            let second = folder.join("model-00002-of-00002.safetensors");
            fs::copy(folder.join(first), second).map(drop).unwrap();
        }),
        "is in `model-0000",
    );
}

/// No change of some bytes makes it panic.
#[test]
fn random_changes_never_panic() {
    use rand::{Rng, SeedableRng};
    let home = tempfile::tempdir().unwrap();
    let tiny = Tiny {
        layers: 1,
        ..Tiny::new("phi3")
    };
    let folder = Hub::default().write(&tiny.write(home.path()));
    let mut random = rand_pcg::Pcg64::seed_from_u64(11);
    let names = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ];
    let mut loaded = 0;
    for round in 0..400 {
        let path = folder.join(names[round % names.len()]);
        let good = fs::read(&path).unwrap();
        let mut bytes = good.clone();
        // Of the weights, the header.
        let end = bytes
            .len()
            .min(if round % 4 == 3 { 1500 } else { usize::MAX });
        for _ in 0..random.random_range(1..4) {
            bytes[random.random_range(0..end)] = random.random();
        }
        if random.random_range(0..8) == 0 {
            bytes.truncate(random.random_range(0..good.len()));
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(mut model) = Model::open(&folder, &EngineOptions::default()) {
            loaded += 1;
            let _ = model.generate(&greedy("Hello", 2), &|| false, &mut |_| {});
        }
        fs::write(&path, good).unwrap();
    }
    assert!(loaded > 0, "nothing was ever read");
}
