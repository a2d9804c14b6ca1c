//! The built `casemate-engine`, with a tiny synthetic model and, if it is there, the real one.
#![allow(clippy::unwrap_used, reason = "a test may panic, and so may its modules")]

#[path = "../../engine/tests/synthetic/mod.rs"]
mod synthetic;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ipc::{EngineReply, EngineRequest, FRAME_BYTES_MAX, read_frame, write_frame};
use serde_json::{Value, json};

const REQUEST: &str = r#"{"model":"any","messages":[{"role":"user","content":"hello hello"}],
    "max_tokens":30,"temperature":0.9,"top_p":0.95,"top_k":200,"min_p":0.01,"presence_penalty":0.3,
    "frequency_penalty":0.2,"repetition_penalty":1.05,"logit_bias":{"40":2.5},"seed":-7,"stop":["\u0000\u0000"]}"#;

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        bench.write("tiny.gguf", &synthetic::model().build());
        bench.write("request.json", REQUEST.as_bytes());
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Runs in the folder; `tiny.gguf` is the model.
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate-engine"));
        command.arg(args[0]).args(["--model", "tiny.gguf"]).args(&args[1..]);
        command.current_dir(self.folder.path()).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        json_of(&self.run(args))
    }

    /// What is said of something that does not work.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Exit status and what is said of a replay.
    fn replay(&self, more: &[&str]) -> (Option<i32>, String) {
        let args = [&["replay", "receipt.json", "--request", "request.json"], more].concat();
        let output = self.run(&args);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    fn receipt(&self) -> Value {
        let args = ["generate", "--request", "request.json", "--receipt", "receipt.json", "--json"];
        let answer = self.json(&args);
        let receipt: Value =
            serde_json::from_slice(&fs::read(self.path("receipt.json")).unwrap()).unwrap();
        assert_eq!(receipt["output_token_ids"], answer["token_ids"]);
        receipt
    }
}

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn tokens_have_pieces_that_make_the_text() {
    let bench = Bench::new();
    let found = bench.json(&["tokenize", "hello hello <|im_end|>é", "--json"]);
    let pieces = found["pieces"].as_array().unwrap();
    let ids = numbers(&found["token_ids"]);
    assert_eq!((&ids[..2], pieces.len()), (&[262.0, 263.0][..], ids.len()));
    assert!(ids.iter().all(|id| *id > 2.0), "no control token");
    let text: String = pieces[..ids.len() - 2].iter().map(|p| p.as_str().unwrap()).collect();
    assert_eq!(text, "hello hello <|im_end|>");
    let lines = bench.run(&["tokenize", "hello"]);
    assert_eq!(lines.stdout, b"262\t\"hello\"\n");
}

/// A folder as transformers writes it.
fn write_folder(bench: &Bench, case: &str) {
    let folder = synthetic::folder::folder(case, 260);
    fs::create_dir(bench.path(case)).unwrap();
    let write = |name: &str, bytes: &[u8]| bench.write(&format!("{case}/{name}"), bytes);
    write("config.json", folder.config.to_string().as_bytes());
    write("tokenizer.json", folder.tokenizer.to_string().as_bytes());
    write("chat_template.jinja", synthetic::TEMPLATE.as_bytes());
    for (i, file) in folder.files.iter().enumerate() {
        write(&format!("model-{i}.safetensors"), file);
    }
}

#[test]
fn a_quantised_folder_answers_and_is_never_overwritten() {
    let bench = Bench::new();
    for case in ["llama3", synthetic::families::EIGHTHS] {
        write_folder(&bench, case);
        for format in ["q8_0", "q4_0"] {
            let out = format!("{case}-{format}.gguf");
            let args = ["quantize", "--model", case, "--format", format, "--out", &out];
            let run = || {
                let mut command = Command::new(env!("CARGO_BIN_EXE_casemate-engine"));
                command.args(args).current_dir(bench.folder.path()).output().unwrap()
            };
            let said = run();
            assert!(said.status.success(), "{said:?}");
            let bytes = fs::read(bench.path(&out)).unwrap();
            let line = String::from_utf8(said.stdout).unwrap();
            assert!(line.ends_with(&format!("quantised, {} bytes\n", bytes.len())), "{line}");
            let again = run();
            assert_eq!(again.status.code(), Some(2), "{again:?}");
            assert!(String::from_utf8(again.stderr).unwrap().contains("not overwritten"));
            assert_eq!(fs::read(bench.path(&out)).unwrap(), bytes);
            let mut command = Command::new(env!("CARGO_BIN_EXE_casemate-engine"));
            command.args(["generate", "--model", &out, "--prompt", "hi", "--max-tokens", "3"]);
            let answer =
                json_of(&command.arg("--json").current_dir(bench.folder.path()).output().unwrap());
            assert!(!answer["token_ids"].as_array().unwrap().is_empty());
        }
    }
    let quantised = bench.refused(&["quantize", "--format", "q8_0", "--out", "x.gguf"]);
    assert!(quantised.contains("already"), "{quantised}");
    let left = fs::read_dir(bench.folder.path()).unwrap().count();
    assert_eq!(left, 2 + 2 + 4, "nothing is left of what failed");
}

#[test]
fn greedy_answers_follow_the_logits() {
    let bench = Bench::new();
    let answer = bench.json(&[
        "generate",
        "--prompt",
        "hello",
        "--temperature",
        "0",
        "--max-tokens",
        "6",
        "--json",
    ]);
    assert_eq!(answer["prompt_token_ids"], json!([262]));
    let ids = numbers(&answer["token_ids"]);
    let logprobs = numbers(&answer["logprobs"]);
    assert!(!ids.is_empty() && ids.len() == logprobs.len());
    let sequence: Vec<String> =
        [262.0].iter().chain(&ids[..ids.len() - 1]).map(ToString::to_string).collect();
    let found = bench.json(&["logits", "--tokens", &sequence.join(","), "--json"]);
    let rows = found["logits"].as_array().unwrap();
    assert_eq!(rows.len(), ids.len());
    for ((row, id), logprob) in rows.iter().map(numbers).zip(&ids).zip(&logprobs) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(row.iter().position(|l| *l == largest).unwrap() as f64, *id);
        let total: f64 = row.iter().map(|l| (l - largest).exp()).sum();
        assert!((-total.ln() - logprob).abs() < 1e-4, "{logprob}");
    }
    let plain = bench.run(&["generate", "--prompt", "hello", "--max-tokens", "6"]);
    let text = String::from_utf8(plain.stdout).unwrap();
    assert_eq!(text.strip_suffix('\n').unwrap(), answer["text"].as_str().unwrap());
}

#[test]
fn likeliest_tokens_come_when_asked_for() {
    let bench = Bench::new();
    let args = [
        "generate",
        "--prompt",
        "hello",
        "--chat",
        "--max-tokens",
        "4",
        "--top-logprobs",
        "3",
        "--json",
    ];
    let answer = bench.json(&args);
    for (top, id) in
        answer["top_logprobs"].as_array().unwrap().iter().zip(numbers(&answer["token_ids"]))
    {
        assert_eq!(top.as_array().unwrap().len(), 3);
        assert_eq!(top[0]["token_id"].as_f64(), Some(id));
    }
    assert!(answer["prompt_token_ids"].as_array().unwrap().len() > 10, "the template is applied");
}

#[test]
fn parameters_of_the_sampler_have_an_effect_and_a_range() {
    let bench = Bench::new();
    let said = |more: &[&str]| {
        let args = [&["generate", "--prompt", "hello", "--max-tokens", "12", "--json"], more];
        numbers(&bench.json(&args.concat())["token_ids"])
    };
    let plain = said(&[]);
    assert_eq!(said(&["--temperature", "1.5", "--top-k", "1"]), plain, "one token is left");
    assert_eq!(said(&["--temperature", "1.5", "--min-p", "1"]), plain, "one token is left");
    let first = format!("{}=-100", plain[0]);
    assert_ne!(said(&["--logit-bias", &first])[0], plain[0]);
    let different = said(&["--presence-penalty", "2", "--repetition-penalty", "10"]);
    assert_ne!(different, plain);
    let range = bench.refused(&["generate", "--prompt", "x", "--frequency-penalty", "-3"]);
    assert!(range.contains("frequency_penalty: found -3, expected -2 to 2"), "{range}");
    let foreign = bench.refused(&["generate", "--prompt", "x", "--logit-bias", "264=1"]);
    assert!(foreign.contains("tokens below 264"), "{foreign}");
}

#[test]
fn a_receipt_holds_the_format_of_the_answer() {
    let bench = Bench::new();
    let format = r#","response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"boolean"}}}}"#;
    let request = REQUEST.strip_suffix('}').unwrap().to_owned() + format;
    bench.write("request.json", request.as_bytes());
    let receipt = bench.receipt();
    assert_eq!(
        receipt["answer_format"],
        json!({"json-schema": {"schema": r#"{"type":"boolean"}"#}})
    );
    assert_eq!(bench.replay(&["--threads", "1"]).0, Some(0));
    let mut other = receipt.clone();
    other["answer_format"] = Value::Null;
    bench.write("receipt.json", other.to_string().as_bytes());
    assert!(bench.replay(&[]).1.contains("the answer's format differs"));
}

#[test]
fn a_packed_model_answers_the_same() {
    let bench = Bench::new();
    let answer = || {
        bench.json(&["generate", "--prompt", "hello", "--max-tokens", "8", "--json"])["token_ids"]
            .take()
    };
    let plain = answer();
    assert!(bench.run(&["pack", "--out", "packed.gguf"]).status.success());
    assert!(bench.refused(&["pack", "--out", "packed.gguf"]).contains("packed.gguf"));
    let (before, after) = (fs::read(bench.path("tiny.gguf")), fs::read(bench.path("packed.gguf")));
    assert_ne!(before.unwrap(), after.unwrap());
    fs::rename(bench.path("packed.gguf"), bench.path("tiny.gguf")).unwrap();
    assert_eq!(answer(), plain);
}

#[test]
fn threads_and_instruction_sets_change_nothing() {
    let bench = Bench::new();
    let said = |more: &[&str]| {
        let args = [&["generate", "--request", "request.json", "--json"], more].concat();
        let answer = bench.json(&args);
        (answer["token_ids"].clone(), answer["logprobs"].clone())
    };
    assert_eq!(said(&["--threads", "1"]), said(&["--threads", "2"]));
    assert_eq!(said(&[]), said(&["--no-avx512"]));
}

#[test]
fn a_receipt_replays() {
    let bench = Bench::new();
    let receipt = bench.receipt();
    assert_eq!(receipt["sampling"]["seed"].as_u64(), Some(7_u64.wrapping_neg()));
    assert_eq!(bench.replay(&[]).0, Some(0), "{:?}", bench.replay(&[]));
    let (status, text) = bench.replay(&["--threads", "1", "--json"]);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &found["equal"], &found["first_difference"]),
        (Some(0), &json!(true), &Value::Null)
    );
}

#[test]
fn a_replay_says_where_it_differs_first() {
    let bench = Bench::new();
    let receipt = bench.receipt();
    let ids: Vec<u32> = serde_json::from_value(receipt["output_token_ids"].clone()).unwrap();
    assert!(ids.len() > 3);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = receipt.clone();
        change(&mut changed);
        bench.write("receipt.json", changed.to_string().as_bytes());
    };
    // An answer of another engine, honestly digested.
    with(&|receipt| {
        let mut other = ids.clone();
        other[2] ^= 1;
        let bytes: Vec<u8> = other.iter().flat_map(|id| id.to_le_bytes()).collect();
        receipt["output_tokens_sha256"] = json!(sha256(&bytes));
        receipt["output_token_ids"] = json!(other);
    });
    let (status, text) = bench.replay(&["--json"]);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &found["equal"], &found["first_difference"]),
        (Some(1), &json!(false), &json!(2))
    );
    with(&|receipt| {
        receipt["output_tokens_sha256"] = json!("00".repeat(32));
        receipt.as_object_mut().unwrap().remove("output_token_ids");
    });
    let (status, text) = bench.replay(&[]);
    assert!(status == Some(1) && text.contains("not known"), "{text}");
    with(&|receipt| receipt["output_token_ids"][0] = json!(1));
    assert!(bench.replay(&[]).1.contains("contradicts itself"));
    with(&|receipt| receipt["model_sha256"] = json!("00".repeat(32)));
    assert!(bench.replay(&[]).1.contains("the model differs"));
    let sampling = receipt["sampling"].as_object().unwrap();
    assert_eq!(sampling.len(), 9, "{sampling:?}");
    for name in sampling.keys() {
        // Each is in the receipt, each counts, and none was left at a value without effect.
        with(&|receipt| drop(receipt["sampling"].as_object_mut().unwrap().remove(name)));
        assert!(bench.replay(&[]).1.contains("the sampling differs"), "{name}");
    }
    with(&|receipt| receipt["bundle_digest"] = json!("ab"));
    assert_eq!(bench.replay(&["--bundle-digest", "ab"]).0, Some(0));
    assert!(bench.replay(&["--bundle-digest", "cd"]).1.contains("the bundle differs"));
    with(&|_| ());
    bench.write("request.json", (REQUEST.to_owned() + " ").as_bytes());
    let (status, text) = bench.replay(&[]);
    assert!(status == Some(1) && text.contains("the request differs"), "{text}");
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

#[test]
fn bad_input_is_refused_with_a_reason() {
    let bench = Bench::new();
    assert!(bench.refused(&["logits", "--tokens", "1,99999"]).contains("99999"));
    assert!(bench.refused(&["logits", "--tokens", &vec!["5"; 129].join(",")]).contains("context"));
    assert!(bench.refused(&["generate", "--prompt", ""]).contains("empty"));
    assert!(
        bench.refused(&["generate", "--prompt", "x", "--temperature", "3"]).contains("temperature")
    );
    assert!(bench.refused(&["generate", "--prompt", &"x".repeat(500)]).contains("128 tokens"));
    assert!(bench.refused(&["generate"]).contains("--prompt"));
    bench.write("request.json", b"{}");
    assert!(bench.refused(&["generate", "--request", "request.json"]).contains("not acceptable"));
    bench.write("receipt.json", b"{}");
    assert!(
        bench
            .refused(&["replay", "receipt.json", "--request", "request.json"])
            .contains("no receipt")
    );
    bench.write("tiny.gguf", b"GGUF");
    assert!(bench.refused(&["generate", "--prompt", "x"]).contains("tiny.gguf"));
}

#[test]
fn the_bench_measures_what_fits_the_context() {
    let output = Bench::new().run(&["bench", "--threads", "1", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let tests: Vec<&Value> = lines.iter().map(|line| &line["test"]).collect();
    assert_eq!(tests, ["pp64", "tg64", "read", "memory"]);
    assert!(lines[..2].iter().all(|line| line["tokens_per_s"].as_f64().unwrap() > 0.0));
    assert!(lines[2]["bytes_per_s"].as_f64().unwrap() > 0.0);
    let bytes = |key: &str| lines[3][key].as_f64().unwrap();
    assert!(bytes("peak_bytes") > bytes("file_bytes") + bytes("cache_bytes"), "{lines:?}");
}

#[test]
fn a_served_model_answers_on_its_socket() {
    let bench = Bench::new();
    let mut server = Command::new(env!("CARGO_BIN_EXE_casemate-engine"))
        .args(["serve", "--model", "tiny.gguf", "--socket", "socket"])
        .current_dir(bench.folder.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let reply = status_of(&bench.path("socket"));
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(
        matches!(&reply, EngineReply::Status(Some(info)) if info.model_id == "tiny"),
        "{reply:?}"
    );
}

fn status_of(socket: &Path) -> EngineReply {
    let until = Instant::now() + Duration::from_secs(60);
    let mut stream = loop {
        match std::os::unix::net::UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    write_frame(&mut stream, &EngineRequest::Status, FRAME_BYTES_MAX).unwrap();
    read_frame(&mut stream, FRAME_BYTES_MAX).unwrap()
}

#[test]
fn vectors_are_printed_and_what_is_no_encoder_is_refused() {
    let bench = Bench::new();
    let files = synthetic::encoder::files();
    fs::create_dir_all(bench.path("encoder/1_Pooling")).unwrap();
    for name in ["config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json"] {
        bench.write(&format!("encoder/{name}"), &files.get(name).unwrap());
    }
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate-engine"));
        command.args(["embed", "--model", "encoder"]).args(args);
        command.current_dir(bench.folder.path()).output().unwrap()
    };
    let output = run(&["hello"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("needs model.safetensors"), "{said}");

    bench.write("encoder/model.safetensors", &files.weights);
    let said = json_of(&run(&["--json", "hello", "hello hello"]));
    assert_eq!(said["token_ids"], json!([[2, 4, 3], [2, 4, 4, 3]]));
    let vectors: Vec<_> = said["embeddings"].as_array().unwrap().iter().map(numbers).collect();
    for vector in &vectors {
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!(vector.len() == 64 && (length - 1.0).abs() < 1e-5, "{length}");
    }
    let alone = json_of(&run(&["--json", "--threads", "1", "hello hello"]));
    assert_eq!(alone["embeddings"][0], said["embeddings"][1]);
    let output = run(&["--dimensions", "8", "hello"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn the_real_model_generates_and_replays() {
    let Some(model) = std::env::var_os("CASEMATE_TEST_MODEL") else {
        println!("skipped: CASEMATE_TEST_MODEL does not name a GGUF file");
        return;
    };
    let bench = Bench::new();
    fs::remove_file(bench.path("tiny.gguf")).unwrap();
    std::os::unix::fs::symlink(model, bench.path("tiny.gguf")).unwrap();
    let question = "What is the capital of Cameroon?";
    let answer =
        bench.json(&["generate", "--prompt", question, "--chat", "--max-tokens", "24", "--json"]);
    // As in the engine's own test: what the same weights give in f32 throughout.
    assert_eq!(answer["text"], "The capital of Cameroon is Kougou.");
    assert_eq!(answer["finish_reason"], "stop");
    bench.receipt();
    assert_eq!(bench.replay(&["--threads", "1"]).0, Some(0));
}
