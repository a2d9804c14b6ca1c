//! `casemate forecast`: what a change will do to a machine, before it is made.

mod words;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use evidence::eventlog::LOG_BYTES_MAX;
use evidence::forecast::{
    After, Change, DatabaseName, Fate, Forecast, Measured, Seal, Sealed, forecast,
};
use evidence::format::{EVIDENCE_SCHEMA, Evidence, Machine, REFERENCE_SCHEMA, Reference};
use evidence::reseal::{ORDER_FILE, Order, RESEAL_SCHEMA};
use evidence::sealed::{self, SealedKey};
use evidence::sigdb::{DATABASE_BYTES_MAX, Database};
use serde_json::json;

use crate::bundle::read;
use crate::output::{new_folder, write_new};
use words::Language;

/// Longest evidence file, in bytes, as casemate-verify reads them.
const EVIDENCE_BYTES_MAX: usize = 32 << 20;
/// Longest reference or machine file, in bytes.
const TRUST_BYTES_MAX: usize = 1 << 20;
/// PCR of Secure Boot's variables: the one to which an order seals.
const PCR_SECURE_BOOT: u8 = 7;

/// Says which PCRs change and which seals break, and prepares the reseal. Nothing is changed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Evidence of the machine as it is now
    #[arg(required_unless_present = "log", conflicts_with = "log")]
    evidence: Option<PathBuf>,
    /// Its firmware event log instead (binary_bios_measurements): PCRs 0 to 9 only
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Fail unless the evidence is of this machine (machine.json)
    #[arg(long, value_name = "FILE", conflicts_with = "log")]
    machine: Option<PathBuf>,
    /// A bundle that is encrypted to the machine: its medium's folder, or sealed/key.json of it; may be repeated
    #[arg(long, value_name = "PATH", conflicts_with = "log")]
    sealed: Vec<PathBuf>,
    #[command(flatten)]
    change: Changes,
    /// Language of the text
    #[arg(long, value_enum, default_value_t)]
    lang: Language,
    /// Print JSON instead of lines
    #[arg(long)]
    json: bool,
    /// Make a folder with the order to seal the state partition to the PCR 7 that is foreseen
    #[arg(long, value_name = "DIR", requires = "machine")]
    reseal: Option<PathBuf>,
    /// Reference values that the machine is judged by now; without, --image's are taken for them
    #[arg(long, value_name = "FILE", requires = "new_reference")]
    reference: Option<PathBuf>,
    /// Write the reference values by which the machine must be judged after the change
    #[arg(long, value_name = "FILE")]
    new_reference: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// Update to the image with these reference values (reference.json)
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// New content of dbx: signature lists (.esl), or those in an authenticated variable (.auth)
    #[arg(long, value_name = "FILE", conflicts_with = "dbx_append")]
    dbx: Option<PathBuf>,
    /// Update that firmware appends to dbx, such as the UEFI Forum's dbxupdate_x64.bin
    #[arg(long, value_name = "FILE")]
    dbx_append: Option<PathBuf>,
    /// New content of db
    #[arg(long, value_name = "FILE", conflicts_with = "db_append")]
    db: Option<PathBuf>,
    /// Update that firmware appends to db
    #[arg(long, value_name = "FILE")]
    db_append: Option<PathBuf>,
    /// Update of the machine's firmware
    #[arg(long)]
    firmware: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let machine = measured(args)?;
    let files = Files::read(&args.change)?;
    let mut foreseen = forecast(&machine, &files.changes()?)?;
    for path in &args.sealed {
        add_bundle(&mut foreseen, &machine, path)?;
    }
    let text =
        if args.json { json_text(&foreseen, args.lang)? } else { lines(&foreseen, args.lang)? };
    print!("{text}");
    if let Some(out) = &args.new_reference {
        let new = new_reference(args, &files, &foreseen)?;
        write_new(out, (serde_json::to_string_pretty(&new)? + "\n").as_bytes())?;
    }
    match &args.reseal {
        Some(folder) => prepare(folder, &machine, &foreseen, args.lang),
        None => Ok(()),
    }
}

/// Reads `path`, or the key's file in that folder.
fn add_bundle(forecast: &mut Forecast, machine: &Measured, path: &Path) -> anyhow::Result<()> {
    let whole = path.join(sealed::FOLDER);
    let file = match (path.is_dir(), whole.is_dir()) {
        (false, _) => path.to_owned(),
        (true, true) => whole.join(sealed::FILE),
        (true, false) => path.join(sealed::FILE),
    };
    let shown = || file.display().to_string();
    let key = SealedKey::parse(&read(&file, sealed::BYTES_MAX)?).with_context(shown)?;
    forecast.add_bundle(machine, path.display().to_string(), &key).with_context(shown)
}

fn new_reference(args: &Args, files: &Files, forecast: &Forecast) -> anyhow::Result<Reference> {
    let given = args.reference.as_deref().map(read_reference).transpose()?;
    let (image, present) = match (&files.image, &given) {
        (Some(image), Some(given)) => (image, given),
        (Some(one), None) | (None, Some(one)) => (one, one),
        (None, None) => bail!("--new-reference needs --reference or --image"),
    };
    forecast.reference(image, present).with_context(|| match (&files.image, &given) {
        (Some(_), None) => "give also --reference, by which the machine is judged now".to_owned(),
        _ => "no new reference values".to_owned(),
    })
}

fn measured(args: &Args) -> anyhow::Result<Measured> {
    let Some(path) = &args.evidence else {
        let log = args.log.as_deref().context("give evidence or --log")?;
        let bytes = read(log, LOG_BYTES_MAX)?;
        return Measured::by_log(bytes).with_context(|| log.display().to_string());
    };
    let evidence: Evidence = serde_json::from_slice(&read(path, EVIDENCE_BYTES_MAX)?)
        .with_context(|| not_json(path, "evidence"))?;
    check_schema(path, &evidence.schema, EVIDENCE_SCHEMA)?;
    let machine = Measured::by_evidence(&evidence).with_context(|| path.display().to_string())?;
    if let Some(pinned) = &args.machine {
        let pin: Machine = serde_json::from_slice(&read(pinned, TRUST_BYTES_MAX)?)
            .with_context(|| not_json(pinned, "a machine file"))?;
        let found = machine.ak_name().unwrap_or_default();
        if found != pin.ak_name {
            bail!(
                "{} is of the machine {found}; {} names {}",
                path.display(),
                pinned.display(),
                pin.ak_name
            );
        }
    }
    Ok(machine)
}

/// What the changes are made of, read whole.
struct Files {
    image: Option<Reference>,
    databases: Vec<(PathBuf, DatabaseName, bool, Vec<u8>)>,
    firmware: bool,
}

impl Files {
    fn read(args: &Changes) -> anyhow::Result<Self> {
        let image = args.image.as_deref().map(read_reference).transpose()?;
        let given = [
            (&args.dbx, DatabaseName::Dbx, false),
            (&args.dbx_append, DatabaseName::Dbx, true),
            (&args.db, DatabaseName::Db, false),
            (&args.db_append, DatabaseName::Db, true),
        ];
        let mut databases = Vec::new();
        for (path, name, appended) in given {
            if let Some(path) = path {
                databases.push((path.clone(), name, appended, read(path, DATABASE_BYTES_MAX)?));
            }
        }
        Ok(Self { image, databases, firmware: args.firmware })
    }

    fn changes(&self) -> anyhow::Result<Vec<Change<'_>>> {
        let mut changes = Vec::new();
        for (path, name, appended, bytes) in &self.databases {
            let database =
                Database::parse_file(bytes).with_context(|| path.display().to_string())?;
            changes.push(match appended {
                true => Change::Append(*name, database),
                false => Change::Replace(*name, database),
            });
        }
        changes.extend(self.image.as_ref().map(Change::Image));
        changes.extend(self.firmware.then_some(Change::Firmware));
        Ok(changes)
    }
}

fn lines(forecast: &Forecast, lang: Language) -> anyhow::Result<String> {
    let mut text = String::new();
    for (pcr, outlook) in &forecast.pcrs {
        let now = hex::encode(outlook.before);
        writeln!(text, "PCR {pcr:>2}  {:<10}  {now}", lang.outlook(outlook))?;
        if let (After::Exactly(value), Some(false)) = (outlook.after, outlook.stays()) {
            writeln!(text, "{:>6}  {:<10}  {}", "", lang.then(), hex::encode(value))?;
        }
        for why in &outlook.why {
            let why = lang.why(why);
            if !why.is_empty() {
                writeln!(text, "{:>6}  {:<10}  {why}", "", "")?;
            }
        }
    }
    for seal in &forecast.seals {
        writeln!(text, "{}", lang.seal(seal))?;
    }
    for obstacle in &forecast.obstacles {
        writeln!(text, "{}", lang.obstacle(obstacle))?;
    }
    for advice in lang.advice(forecast) {
        writeln!(text, "-> {advice}")?;
    }
    Ok(text)
}

/// Names are the same in every language; only sentences are translated.
fn json_text(forecast: &Forecast, lang: Language) -> anyhow::Result<String> {
    let pcrs: serde_json::Map<_, _> = forecast
        .pcrs
        .iter()
        .map(|(pcr, outlook)| {
            let after = match outlook.after {
                After::Exactly(value) => Some(hex::encode(value)),
                _ => None,
            };
            let why: Vec<String> = outlook.why.iter().map(|why| lang.why(why)).collect();
            let value = json!({
                "before": hex::encode(outlook.before),
                "after": after,
                "outlook": Language::En.outlook(outlook),
                "why": why.iter().filter(|why| !why.is_empty()).collect::<Vec<_>>(),
            });
            (pcr.to_string(), value)
        })
        .collect();
    let value = json!({
        "schema": "casemate-forecast-v1",
        "pcrs": pcrs,
        "seals": forecast.seals.iter().map(|seal| seal_json(seal, lang)).collect::<Vec<_>>(),
        "obstacles": forecast.obstacles.iter().map(|o| lang.obstacle(o)).collect::<Vec<_>>(),
        "advice": lang.advice(forecast),
    });
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

fn seal_json(seal: &Seal, lang: Language) -> serde_json::Value {
    let (fate, pcrs): (_, &[u8]) = match &seal.fate {
        Fate::Opens => ("opens", &[]),
        Fate::OpensIfSigned => ("opens-if-signed", &[]),
        Fate::Breaks(pcrs) => ("breaks", pcrs),
        Fate::Uncertain(pcrs) => ("uncertain", pcrs),
    };
    let (name, medium) = match &seal.sealed {
        Sealed::State => ("state-partition", None),
        Sealed::Bundle { medium, .. } => ("sealed-bundle", Some(medium)),
    };
    json!({
        "name": name,
        "medium": medium,
        "fate": fate,
        "pcrs": pcrs,
        "closed_now_by": seal.closed_by,
        "text": lang.seal(seal),
    })
}

/// Makes the folder that the release keys sign.
fn prepare(
    folder: &Path,
    machine: &Measured,
    forecast: &Forecast,
    lang: Language,
) -> anyhow::Result<()> {
    if !forecast.obstacles.is_empty() {
        bail!("no order: the machine would not start at all");
    }
    let outlook = forecast.pcrs.get(&PCR_SECURE_BOOT).context("no PCR 7")?;
    let After::Exactly(after) = outlook.after else {
        bail!("no order: PCR 7 cannot be foreseen; forecast the known change alone");
    };
    if after == outlook.before {
        bail!("no order: PCR 7 stays as it is, and what is sealed to it opens");
    }
    let order = Order {
        schema: RESEAL_SCHEMA.to_owned(),
        ak_name: machine.ak_name().context("no evidence")?.to_owned(),
        pcr7_present: hex::encode(outlook.before),
        pcr7_forecast: hex::encode(after),
        id: crate::keys::random_uuid()?.replace('-', ""),
    };
    let order = order.to_json()?;
    new_folder(folder, |folder| write_new(&folder.join(ORDER_FILE), &order))?;
    eprintln!("{}", lang.prepared(folder));
    Ok(())
}

fn read_reference(path: &Path) -> anyhow::Result<Reference> {
    let reference: Reference = serde_json::from_slice(&read(path, TRUST_BYTES_MAX)?)
        .with_context(|| not_json(path, "reference values"))?;
    check_schema(path, &reference.schema, REFERENCE_SCHEMA)?;
    Ok(reference)
}

fn not_json(path: &Path, what: &str) -> String {
    format!("{} is not {what}", path.display())
}

fn check_schema(path: &Path, found: &str, expected: &str) -> anyhow::Result<()> {
    if found != expected {
        bail!("{} has schema {found:.80?}; {expected:?} is expected", path.display());
    }
    Ok(())
}
