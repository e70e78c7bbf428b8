//! The real models against the stock models of candle-transformers: the same text, the same
//! perplexity; and a gemma that fits in memory.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};

use common::full::Full;
use common::stock::Stock;
use llmpick_core::{GenerateRequest, Message, Prompt, Sampling};
use llmpick_engine::{EngineOptions, Model};

/// The stock models take up to 3.5 GB each and all threads; one at a time.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Greedy text of one prompt: the stock model's, or the same up to a near tie, where the
/// stock model itself holds our token for about as likely as its own. Both round the values
/// between the layers to 8 bits, each in its way, which is enough to decide a tie.
fn check_text(name: &str, prompt: &Prompt, count: usize) -> Option<Texts> {
    // The stock models' own logits move by so much between reading a text at once and
    // token by token.
    const TIE: f64 = 0.3;
    let path = common::model(name)?;
    let _turn = turn();
    let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
    let request = GenerateRequest {
        sampling: Sampling::greedy(),
        max_tokens: Some(count as u32),
        ..GenerateRequest::new(prompt.clone())
    };
    let tokens = model.prompt_tokens(prompt).unwrap();
    let mut ours = String::new();
    let emit = &mut |piece: llmpick_core::TokenPiece| ours.push_str(&piece.text);
    model.generate(&request, &|| false, emit).unwrap();
    let tokenizer = model.tokenizer().clone();
    drop(model);
    let mut reference = Stock::open(&path);
    let theirs = reference.greedy(&tokens, count, tokenizer.end_of_generation());
    let stock = tokenizer.decode(&theirs);
    eprintln!("{name}: {ours:?}");
    assert!(ours.trim().len() > 10, "{name}: {ours:?}");
    if ours != stock {
        let options = llmpick_engine::tokens::Encode {
            add_bos: false,
            parse_special: false,
        };
        let own = tokenizer.encode(&ours, options).unwrap();
        let same = own.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
        let logits = reference.logits(&[&tokens[..], &theirs[..same]].concat(), 0);
        let of = |token: Option<&u32>| common::stock::log_likelihood(&logits, *token.unwrap());
        let gap = of(theirs.get(same)) - of(own.get(same));
        eprintln!("{name}: differs from {stock:?} after {same} tokens, by {gap:.3}");
        assert!(
            (0.0..TIE).contains(&gap),
            "{name}: {ours:?} and {stock:?}, {gap}"
        );
    }
    Some(Texts { ours, stock })
}

struct Texts {
    ours: String,
    stock: String,
}

fn question() -> Prompt {
    Prompt::Chat(vec![Message::user("What is the capital of France?")])
}

fn text(prompt: &str) -> Prompt {
    Prompt::Text(prompt.to_owned())
}

/// `sure` has answers far from any tie: they are the stock model's, to the letter. `free`
/// may end in a tie on another processor.
fn check_texts(name: &str, sure: &[Prompt], free: &[Prompt]) {
    for prompt in sure {
        if let Some(texts) = check_text(name, prompt, 24) {
            assert_eq!(texts.ours, texts.stock, "{name}");
        }
    }
    for prompt in free {
        check_text(name, prompt, 24);
    }
}

const COLOURS: &str = "The three primary colours are";
const COUNTING: &str = "1, 2, 3, 4,";
const CODE: &str = "def fibonacci(n):\n    ";

#[test]
fn smollm2_speaks_like_the_stock_model() {
    check_texts(common::SMOLLM2, &[text(COUNTING)], &[text(COLOURS)]);
}

#[test]
fn small_qwen_speaks_like_the_stock_model() {
    check_texts(
        common::QWEN_SMALL,
        &[question(), text(COUNTING)],
        &[text(CODE), text(COLOURS)],
    );
}

#[test]
fn large_qwen_speaks_like_the_stock_model() {
    check_texts(
        common::QWEN_LARGE,
        &[question(), text(COUNTING)],
        &[text(CODE)],
    );
}

#[test]
fn gemma_speaks_like_the_stock_model() {
    check_texts(
        common::GEMMA,
        &[text(COUNTING), text(COLOURS)],
        &[text(CODE)],
    );
}

#[test]
fn both_qwens_know_the_capital_of_france() {
    for name in [common::QWEN_SMALL, common::QWEN_LARGE] {
        let Some(path) = common::model(name) else {
            continue;
        };
        let _turn = turn();
        let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
        let request = GenerateRequest {
            sampling: Sampling::greedy(),
            max_tokens: Some(32),
            ..GenerateRequest::new(question())
        };
        let mut text = String::new();
        let emit = &mut |piece: llmpick_core::TokenPiece| text.push_str(&piece.text);
        let finish = model.generate(&request, &|| false, emit).unwrap();
        assert!(text.contains("Paris"), "{name}: {text:?}");
        assert_eq!(finish.reason, llmpick_core::FinishReason::Stop, "{name}");
    }
}

/// Perplexity on eight windows of 512 tokens, the stock model in full precision over the same
/// weights.
fn check_perplexity(name: &str) {
    const CONTEXT: usize = 512;
    let Some(path) = common::model(name) else {
        return;
    };
    let _turn = turn();
    let text = include_str!("data/eighty-days.txt");
    let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
    let tokenizer = model.tokenizer().clone();
    let tokens = model.prompt_tokens(&Prompt::Text(text.to_owned())).unwrap();
    assert!(
        tokens.len() >= 8 * CONTEXT,
        "{name}: {} tokens",
        tokens.len()
    );
    let ours = model.perplexity(text, CONTEXT, &mut |_, _| {}).unwrap();
    drop(model);
    let mut stock = Full::open(&path);
    let mut windows: Vec<Vec<u32>> = tokens.chunks_exact(CONTEXT).map(<[u32]>::to_vec).collect();
    if let (true, Some(bos)) = (tokenizer.adds_bos(), tokenizer.bos()) {
        windows.iter_mut().for_each(|window| window[0] = bos);
    }
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let nll = stock.nll(&windows, CONTEXT / 2 + 1);
    let count = windows.len() * (CONTEXT - CONTEXT / 2 - 1);
    let stock = (nll / count as f64).exp();
    eprintln!(
        "{name}: {:.4} ours, {stock:.4} stock, {count} tokens",
        ours.ppl
    );
    assert_eq!(ours.tokens as usize, count);
    assert!(
        (ours.ppl / stock - 1.0).abs() < 0.01,
        "{name}: {} and {stock}",
        ours.ppl
    );
}

#[test]
fn smollm2_perplexity_is_the_stock_model_s() {
    check_perplexity(common::SMOLLM2);
}

#[test]
fn small_qwen_perplexity_is_the_stock_model_s() {
    check_perplexity(common::QWEN_SMALL);
}

#[test]
fn large_qwen_perplexity_is_the_stock_model_s() {
    check_perplexity(common::QWEN_LARGE);
}

#[test]
fn gemma_perplexity_is_the_stock_model_s() {
    check_perplexity(common::GEMMA);
}
