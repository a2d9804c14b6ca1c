//! What the logs say beside the claims, for the auditor to know. Only what a quoted PCR vouches for is said.

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::reason::says;
use super::{Boot, Logs, PCR_BOOT_MANAGER, PCR_IMAGE, PCR_SECURE_BOOT, Reason};
use crate::eventlog::{EFI_GLOBAL_VARIABLE, Event, EventKind, Variable};
use crate::pcr::HashAlg;
use crate::sigdb::{CERT_SHA256, CERT_X509, Database, EFI_IMAGE_SECURITY_DATABASE};

/// Most certificates of one variable that are named.
const CERTIFICATES_MAX: usize = 16;
/// Most facts of one claim.
const FACTS_MAX: usize = 64;
/// Bytes of the owner before each signature.
const OWNER_BYTES: usize = 16;

/// Secure Boot's variables, in the order in which they are measured.
const VARIABLES: [(&str, [u8; 16]); 4] = [
    ("PK", EFI_GLOBAL_VARIABLE),
    ("KEK", EFI_GLOBAL_VARIABLE),
    ("db", EFI_IMAGE_SECURITY_DATABASE),
    ("dbx", EFI_IMAGE_SECURITY_DATABASE),
];

impl<'a> Boot<'a> {
    /// Which certificates and hashes each of Secure Boot's variables held.
    pub(in super::super) fn secure_boot_facts(&self) -> Vec<Reason> {
        let Some(logs) = self.explained(PCR_SECURE_BOOT) else { return Vec::new() };
        let of = |&(name, vendor): &(&str, [u8; 16])| {
            let variables = logs.variables(EventKind::EFI_VARIABLE_DRIVER_CONFIG, name, vendor);
            variables.into_iter().map(|content| describe(name, content)).collect::<Vec<_>>()
        };
        VARIABLES.iter().flat_map(of).take(FACTS_MAX).collect()
    }

    /// Which programs the firmware started, and which certificate of db admitted them.
    pub(in super::super) fn boot_chain_facts(&self) -> Vec<Reason> {
        let mut facts = Vec::new();
        if let Some(logs) = self.explained(PCR_BOOT_MANAGER) {
            let kind = EventKind::EFI_BOOT_SERVICES_APPLICATION;
            facts.extend(logs.events(PCR_BOOT_MANAGER, kind).map(|(number, event)| {
                let digest = event.digest(HashAlg::Sha256).map(ToString::to_string);
                let digest = digest.unwrap_or_default();
                says!(
                    "the firmware started the program {digest} (Authenticode; event {number})",
                    "le micrologiciel a démarré le programme {digest} (Authenticode ; événement {number})"
                )
            }));
        }
        if let Some(logs) = self.explained(PCR_SECURE_BOOT) {
            let kind = EventKind::EFI_VARIABLE_AUTHORITY;
            let authorities = logs.variables(kind, "db", EFI_IMAGE_SECURITY_DATABASE);
            facts.extend(authorities.into_iter().map(|signature| {
                let authority = match signature.get(OWNER_BYTES..) {
                    Some(certificate) => name(certificate),
                    None => hex::encode(signature),
                };
                says!(
                    "db admitted it by the certificate {authority}",
                    "db l'a admis par le certificat {authority}"
                )
            }));
        }
        facts.truncate(FACTS_MAX);
        facts
    }

    /// The predicted measurements of the image, and which of them the logs show.
    pub(in super::super) fn image_facts(&self) -> Vec<Reason> {
        let reference = self.case.reference;
        let Some(logs) = self.explained(PCR_IMAGE) else { return Vec::new() };
        let predicted = reference.measurements.get(&PCR_IMAGE).map_or(&[][..], Vec::as_slice);
        let mut logged = logs.measured.iter().filter(|(pcr, _)| *pcr == u32::from(PCR_IMAGE));
        let mut facts: Vec<_> = predicted
            .iter()
            .filter(|measured| !measured.what.starts_with("name of "))
            .map(|measured| {
                let (what, sha256) = (&measured.what, &measured.sha256);
                if logged.any(|(_, digest)| digest.to_string().eq_ignore_ascii_case(sha256)) {
                    says!("{what}: {sha256}, as predicted", "{what} : {sha256}, comme prévu")
                } else {
                    says!(
                        "{what}: {sha256} was predicted and not measured in its place",
                        "{what} : {sha256} était prévu et n'a pas été mesuré à sa place"
                    )
                }
            })
            .collect();
        let root = &reference.root_hash;
        facts.push(says!(
            "the root file system predicted with it: dm-verity root hash {root:?}",
            "le système de fichiers racine prévu avec elle : empreinte dm-verity {root:?}"
        ));
        facts.truncate(FACTS_MAX);
        facts
    }

    /// The command line that is inside the image.
    pub(in super::super) fn command_line_facts(&self) -> Vec<Reason> {
        let cmdline = &self.case.reference.cmdline;
        vec![says!(
            "the image's own command line, part of PCR 11: {cmdline:?}",
            "la ligne de commande de l'image, dans le PCR 11 : {cmdline:?}"
        )]
    }

    /// The logs, if they explain PCR `index`.
    fn explained(&self, index: u8) -> Option<&Logs<'a>> {
        let pcrs = self.pcrs().ok()?;
        self.logs.as_ref().ok().filter(|logs| logs.explain(index, pcrs))
    }
}

impl<'a> Logs<'a> {
    /// Events of one PCR and kind, with their numbers.
    fn events(&self, pcr: u8, kind: EventKind) -> impl Iterator<Item = (usize, &Event<'a>)> {
        let events = self.firmware.events().iter().enumerate();
        events.filter(move |(_, event)| event.pcr == u32::from(pcr) && event.kind == kind)
    }

    /// Contents of a variable of Secure Boot, wherever what stands in the log is what was measured.
    fn variables(&self, kind: EventKind, name: &str, vendor: [u8; 16]) -> Vec<&'a [u8]> {
        let events = self.events(PCR_SECURE_BOOT, kind);
        events
            .filter(|(_, event)| event.data_is_measured(HashAlg::Sha256))
            .filter_map(|(_, event)| Variable::parse(event.data).ok())
            .filter(|variable| variable.name == name && variable.vendor == vendor)
            .map(|variable| variable.data)
            .collect()
    }
}

/// What a signature database holds.
fn describe(variable: &str, content: &[u8]) -> Reason {
    let database = match Database::parse(content) {
        Ok(database) => database,
        Err(error) => {
            return says!(
                "{variable} is no signature database: {error}",
                "{variable} n'est pas une base de signatures : {error}"
            );
        }
    };
    let of = |kind: [u8; 16]| {
        let lists = database.lists.iter().filter(move |list| list.kind == kind);
        lists.flat_map(|list| list.signatures.iter())
    };
    let names: Vec<_> = of(CERT_X509)
        .take(CERTIFICATES_MAX)
        .map(|signature| name(signature.get(OWNER_BYTES..).unwrap_or_default()))
        .collect();
    let (certificates, hashes) = (of(CERT_X509).count(), of(CERT_SHA256).count());
    let others = database.len().saturating_sub(certificates).saturating_sub(hashes);
    let names = names.join("; ");
    says!(
        "{variable}: {certificates} certificates ({names}), {hashes} SHA-256 digests of programs, {others} other entries",
        "{variable} : {certificates} certificats ({names}), {hashes} empreintes SHA-256 de programmes, {others} autres entrées"
    )
}

/// A certificate's subject and fingerprint.
fn name(certificate: &[u8]) -> String {
    let fingerprint = HashAlg::Sha256.hash(&[certificate]);
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => format!("{} {fingerprint}", parsed.subject()),
        Err(_) => format!("? {fingerprint}"),
    }
}
