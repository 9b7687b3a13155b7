//! Delivery of one mail by SMTP (RFC 5321), limited to the commands that an alert needs.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::ServerName;
use textnlp_provider::alert::Alert;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::destination::{Mail, MailTls, Mechanism};
use super::{AlertError, DeliveredAlert, MAX_QUOTED_REPLY};

/// The longest line of a reply, in bytes; the protocol allows 512.
const LINE: u64 = 4096;

/// The most lines of one reply.
const LINES: usize = 100;

/// A connection, plain or TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type AnyStream = Box<dyn Stream>;

/// Delivers a message to the server.
pub(super) async fn send(
    mail: &Mail,
    alert: &Alert,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<DeliveredAlert, AlertError> {
    deliver(mail, alert, tls).await.map_err(|because| AlertError::Mail { to: mail.server(), because })
}

async fn deliver(mail: &Mail, alert: &Alert, tls: &Arc<rustls::ClientConfig>) -> Result<DeliveredAlert, String> {
    let plain = TcpStream::connect((mail.host.as_str(), mail.port)).await.map_err(|error| error.to_string())?;
    let hello = format!("EHLO {}", own_name(plain.local_addr().ok().map(|address| address.ip())));
    let plain: AnyStream = Box::new(plain);
    let mut talk = match mail.tls {
        MailTls::Implicit => SmtpSession::over(seal(plain, mail, tls).await?),
        MailTls::Start | MailTls::Off => SmtpSession::over(plain),
    };
    talk.expect(220, "its greeting").await?;
    let mut offers = talk.ask(&hello, 250).await?;
    if mail.tls == MailTls::Start {
        if !offers.iter().any(|line| line.eq_ignore_ascii_case("STARTTLS")) {
            return Err("it offers no STARTTLS, and mail is not sent without TLS".to_owned());
        }
        talk.ask("STARTTLS", 220).await?;
        // Data that an attacker injected before TLS would be taken for the server's replies.
        let stream = talk.into_unread().ok_or("it sent data after STARTTLS, before the TLS handshake")?;
        talk = SmtpSession::over(seal(stream, mail, tls).await?);
        offers = talk.ask(&hello, 250).await?;
    }
    if let Some((user, password)) = &mail.login {
        let mechanism = mechanism(mail.mechanism, &offers)?;
        talk.log_in(mechanism, user, password.expose()).await?;
    }
    talk.ask(&format!("MAIL FROM:<{}>", mail.from), 250).await?;
    let mut refused = Vec::new();
    for to in &mail.to {
        let line = format!("RCPT TO:<{to}>");
        talk.say(&line, &line).await?;
        match talk.answer(&line).await? {
            // 251: the server forwards to the recipient's new address.
            (250 | 251, _) => {}
            // 421 closes the session, whichever recipient caused it.
            (code @ 421, lines) => return Err(unexpected(&line, code, &lines)),
            // One invalid recipient must not keep the others from being notified.
            (code, lines) => refused.push(unexpected(&line, code, &lines)),
        }
    }
    if refused.len() == mail.to.len() {
        return Err(refused.join("; "));
    }
    talk.ask("DATA", 354).await?;
    talk.ask_quietly(&format!("{}\r\n.", message(mail, alert)), "the message", 250).await?;
    // The message is delivered; a lost QUIT changes nothing.
    let _ = talk.ask("QUIT", 221).await;
    Ok(DeliveredAlert { refused })
}

async fn seal(stream: AnyStream, mail: &Mail, tls: &Arc<rustls::ClientConfig>) -> Result<AnyStream, String> {
    let name = ServerName::try_from(mail.host.clone()).map_err(|_| format!("`{}` is not a server name", mail.host))?;
    let encrypted = TlsConnector::from(tls.clone()).connect(name, stream).await.map_err(|error| error.to_string())?;
    Ok(Box::new(encrypted))
}

/// The name for EHLO (RFC 5321, 4.1.3): the host name, or an address literal where the host name is not a valid domain.
fn own_name(address: Option<IpAddr>) -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(fits) && !label.starts_with('-') && !label.ends_with('-')
    };
    match address {
        _ if name.len() <= 253 && name.split('.').all(label) => name,
        Some(IpAddr::V4(address)) => format!("[{address}]"),
        Some(IpAddr::V6(address)) => format!("[IPv6:{address}]"),
        None => "localhost".to_owned(),
    }
}

/// The login mechanism: the one in the URL, or the first that the server offers.
fn mechanism(chosen: Option<Mechanism>, offers: &[String]) -> Result<Mechanism, String> {
    let offered: Vec<&str> = offers
        .iter()
        .filter_map(|line| line.split_once([' ', '=']))
        .filter(|(keyword, _)| keyword.eq_ignore_ascii_case("AUTH"))
        .flat_map(|(_, mechanisms)| mechanisms.split_ascii_whitespace())
        .collect();
    let is_offered = |wanted: &Mechanism| offered.iter().any(|offer| offer.eq_ignore_ascii_case(wanted.name()));
    let mut wanted = Mechanism::ALL.into_iter().filter(|known| chosen.is_none_or(|chosen| chosen == *known));
    wanted.find(is_offered).ok_or_else(|| {
        let wanted = chosen.map_or("PLAIN, LOGIN or XOAUTH2", Mechanism::name);
        let offered = if offered.is_empty() { "no login".to_owned() } else { format!("AUTH {}", offered.join(" ")) };
        format!("it offers {}, and not {wanted}", one_line(&offered))
    })
}

/// One SMTP session.
struct SmtpSession {
    stream: BufReader<AnyStream>,
}

impl SmtpSession {
    fn over(stream: AnyStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    fn into_unread(self) -> Option<AnyStream> {
        self.stream.buffer().is_empty().then(|| self.stream.into_inner())
    }

    async fn log_in(&mut self, mechanism: Mechanism, user: &str, password: &[u8]) -> Result<(), String> {
        let encoded = |parts: &[&[u8]]| BASE64_STANDARD.encode(parts.concat());
        let user = user.as_bytes();
        let named = format!("AUTH {}", mechanism.name());
        match mechanism {
            Mechanism::Plain => {
                let line = format!("{named} {}", encoded(&[b"\0", user, b"\0", password]));
                self.ask_quietly(&line, &named, 235).await?;
            }
            Mechanism::Login => {
                self.ask(&named, 334).await?;
                self.ask_quietly(&encoded(&[user]), &named, 334).await?;
                self.ask_quietly(&encoded(&[password]), &named, 235).await?;
            }
            Mechanism::Xoauth2 => {
                let line =
                    format!("{named} {}", encoded(&[b"user=", user, b"\x01auth=Bearer ", password, b"\x01\x01"]));
                self.say(&line, &named).await?;
                match self.answer(&named).await? {
                    (235, _) => {}
                    // XOAUTH2 sends the reason in base64 first; the refusal follows after an empty line.
                    (334, _) => drop(self.ask_quietly("", &named, 235).await?),
                    (code, lines) => return Err(unexpected(&named, code, &lines)),
                }
            }
        }
        Ok(())
    }

    async fn ask(&mut self, line: &str, expected: u16) -> Result<Vec<String>, String> {
        self.ask_quietly(line, line, expected).await
    }

    /// Sends a command that errors show as `named`, since the line may hold a secret.
    async fn ask_quietly(&mut self, line: &str, named: &str, expected: u16) -> Result<Vec<String>, String> {
        self.say(line, named).await?;
        self.expect(expected, named).await
    }

    async fn say(&mut self, line: &str, named: &str) -> Result<(), String> {
        let sent = async {
            // One write: some servers expect a command in one packet.
            self.stream.write_all(&[line.as_bytes(), b"\r\n"].concat()).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error: std::io::Error| format!("{named}: {error}"))
    }

    /// Reads a reply of this code and returns its lines.
    async fn expect(&mut self, expected: u16, to: &str) -> Result<Vec<String>, String> {
        match self.answer(to).await? {
            (code, lines) if code == expected => Ok(lines),
            (code, lines) => Err(unexpected(to, code, &lines)),
        }
    }

    /// Reads a reply: its code and its lines. Later lines belong to the next reply.
    async fn answer(&mut self, to: &str) -> Result<(u16, Vec<String>), String> {
        let (mut answered, mut lines) = (None, Vec::new());
        loop {
            let mut raw = Vec::new();
            let read = (&mut self.stream).take(LINE).read_until(b'\n', &mut raw).await;
            let text = String::from_utf8_lossy(&raw).trim_end().to_owned();
            read.map_err(|error| format!("{to}: {error}"))?;
            if !raw.ends_with(b"\n") || lines.len() == LINES {
                return Err(format!("{to}: it closed the connection, or its answer is too long"));
            }
            let code = text.get(..3).and_then(|code| code.parse::<u16>().ok());
            let Some(code) = code.filter(|code| answered.is_none_or(|answered| answered == *code)) else {
                return Err(format!("{to}: it answers `{}`", one_line(&text)));
            };
            answered = Some(code);
            lines.push(text.get(4..).unwrap_or_default().to_owned());
            if text.as_bytes().get(3) != Some(&b'-') {
                return Ok((code, lines));
            }
        }
    }
}

/// The message for a refusal or an unexpected reply.
fn unexpected(to: &str, code: u16, lines: &[String]) -> String {
    format!("{to}: it answers `{}`", one_line(&format!("{code} {}", lines.join(" "))))
}

fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_QUOTED_REPLY).collect()
}

/// The message with its headers. Its body is in base64, so no line can be taken for a command.
fn message(mail: &Mail, alert: &Alert) -> String {
    let subject: String = alert
        .to_string()
        .chars()
        .map(|c| if (' '..='~').contains(&c) { c } else { '?' })
        .take(MAX_QUOTED_REPLY)
        .collect();
    let date = jiff::fmt::rfc2822::to_string(&alert.at.to_zoned(jiff::tz::TimeZone::UTC)).unwrap_or_default();
    let id: String = alert.id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(100).collect();
    let text =
        format!("{}\n\nenvironment: {}\nsite: {}\nseen: {}\n", alert.says, alert.environment, alert.site, alert.at);
    let body = BASE64_STANDARD.encode(text);
    let lines: Vec<&str> =
        body.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    [
        format!("From: textnlp-deploy <{}>", mail.from),
        format!("To: {}", mail.to.join(", ")),
        format!("Subject: {subject}"),
        format!("Date: {date}"),
        format!("Message-ID: <{id}@textnlp-deploy>"),
        "Auto-Submitted: auto-generated".to_owned(),
        "MIME-Version: 1.0".to_owned(),
        "Content-Type: text/plain; charset=utf-8".to_owned(),
        "Content-Transfer-Encoding: base64".to_owned(),
        String::new(),
        lines.join("\r\n"),
    ]
    .join("\r\n")
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivateKeyDer;
    use textnlp_provider::Secret;
    use textnlp_provider::alert::AlertState;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    fn alert() -> Alert {
        let text = String::new();
        let (id, at) = ("1".to_owned(), jiff::Timestamp::UNIX_EPOCH);
        Alert {
            id,
            environment: "e".to_owned(),
            site: text.clone(),
            at,
            state: AlertState::Test,
            name: text.clone(),
            about: text.clone(),
            says: text,
        }
    }

    const START: [&str; 2] = ["220 here\r\n", "250-here\r\n250 STARTTLS\r\n"];

    fn hello() -> String {
        format!("EHLO {}", own_name(Some(IpAddr::from([127, 0, 0, 1]))))
    }

    /// Sends these replies before TLS, then follows the protocol with these login mechanisms and these replies for the
    /// recipients. Returns what it received before TLS and in it.
    async fn server(
        listener: TcpListener,
        acceptor: TlsAcceptor,
        before: &[&str],
        logins: &str,
        recipients: &[&str],
    ) -> (String, String) {
        let mut recipients = recipients.iter();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = String::new();
        for line in before {
            stream.write_all(line.as_bytes()).await.unwrap();
            let mut chunk = [0; 500];
            let read = stream.read(&mut chunk).await.unwrap_or(0);
            heard += &String::from_utf8_lossy(&chunk[..read]);
        }
        if !heard.ends_with("STARTTLS\r\n") {
            return (heard, String::new());
        }
        stream.write_all(b"220 go\r\n").await.unwrap();
        let Ok(stream) = acceptor.accept(stream).await else { return (heard, String::new()) };
        let (mut stream, mut encrypted) = (BufReader::new(stream), String::new());
        let (mut in_data, hello, offers) = (false, hello(), format!("250-here\r\n250 AUTH {logins}"));
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return (heard, encrypted);
            }
            encrypted += &line;
            let answer = match line.trim_end() {
                "." => "250 kept",
                _ if in_data => continue,
                line if line == hello => &offers,
                "AUTH LOGIN" => "334 VXNlcm5hbWU6",
                // `ada` in base64, as LOGIN sends it.
                "YWRh" => "334 UGFzc3dvcmQ6",
                // `hunter2` in base64, as LOGIN sends it.
                "aHVudGVyMg==" => "235 ok",
                "DATA" => "354 go on",
                "QUIT" => "221 bye",
                auth if auth.starts_with("AUTH") => "235 ok",
                to if to.starts_with("RCPT") => recipients.next().unwrap(),
                _ => "250 ok",
            };
            in_data = answer.starts_with("354");
            stream.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
        }
    }

    /// The result, and what the server received before and after TLS.
    fn check(before: &[&str], recipients: &[&str]) -> (Result<DeliveredAlert, String>, String, String) {
        check_login(None, "LOGIN PLAIN", before, recipients)
    }

    fn check_login(
        mechanism: Option<Mechanism>,
        logins: &str,
        before: &[&str],
        recipients: &[&str],
    ) -> (Result<DeliveredAlert, String>, String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let versions =
            |provider| rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let ours = versions(provider.clone()).unwrap().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(ours.with_single_cert(vec![made.cert.der().clone()], key).unwrap()));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = Arc::new(tls.with_root_certificates(roots).with_no_client_auth());
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let login = Some(("ada".to_owned(), Secret::new(b"hunter2".to_vec())));
            let port = listener.local_addr().unwrap().port();
            let (host, from, to) = ("localhost".to_owned(), "a@b.c".to_owned(), ["d@e.f", "g@h.i"].map(str::to_owned));
            let to = to[..recipients.len()].to_vec();
            let mail = Mail { host, port, tls: MailTls::Start, login, mechanism, from, to };
            let message = alert();
            let (outcome, heard) =
                tokio::join!(deliver(&mail, &message, &tls), server(listener, acceptor, before, logins, recipients));
            (outcome, heard.0, heard.1)
        })
    }

    #[test]
    fn smtp_starts_tls_before_sending_credentials_or_recipients() {
        let (outcome, clear, encrypted) = check(&START, &["250 ok"]);
        assert_eq!(outcome.unwrap(), DeliveredAlert::default());
        assert_eq!(clear, format!("{}\r\nSTARTTLS\r\n", hello()));
        assert!(
            encrypted.contains("AUTH PLAIN AGFkYQBodW50ZXIy") && encrypted.contains("RCPT TO:<d@e.f>"),
            "{encrypted}"
        );
        assert!(encrypted.ends_with("\r\n.\r\nQUIT\r\n"), "{encrypted}");

        let (outcome, clear, _) = check(&["220 here\r\n", "250-here\r\n250 AUTH PLAIN\r\n"], &["250 ok"]);
        assert!(outcome.unwrap_err().contains("offers no STARTTLS"));
        assert_eq!(clear, format!("{}\r\n", hello()));
        // Data injected before TLS would be taken for the server's replies.
        let (outcome, _, encrypted) =
            check(&["220 here\r\n", "250 STARTTLS\r\n220 go\r\n250 AUTH PLAIN\r\n"], &["250 ok"]);
        assert!(outcome.is_err() && encrypted.is_empty(), "{outcome:?}");
        let (outcome, ..) = check(&["554 go away\r\n"], &["250 ok"]);
        assert!(outcome.unwrap_err().contains("`554 go away`"));
    }

    #[test]
    fn smtp_login_uses_an_offered_or_configured_mechanism() {
        let encrypted = |mechanism, logins: &str| {
            let (outcome, _, encrypted) = check_login(mechanism, logins, &START, &["250 ok"]);
            outcome.map(|_| encrypted)
        };
        let login = "AUTH LOGIN\r\nYWRh\r\naHVudGVyMg==\r\nMAIL FROM";
        assert!(encrypted(None, "LOGIN").unwrap().contains(login));
        assert!(encrypted(None, "XOAUTH2 LOGIN").unwrap().contains(login));
        assert!(encrypted(Some(Mechanism::Login), "PLAIN LOGIN").unwrap().contains(login));
        // "user=ada\x01auth=Bearer hunter2\x01\x01"
        let token = "AUTH XOAUTH2 dXNlcj1hZGEBYXV0aD1CZWFyZXIgaHVudGVyMgEB\r\nMAIL FROM";
        assert!(encrypted(None, "XOAUTH2").unwrap().contains(token));
        assert!(encrypted(Some(Mechanism::Xoauth2), "PLAIN LOGIN XOAUTH2").unwrap().contains(token));
        assert_eq!(
            encrypted(None, "CRAM-MD5").unwrap_err(),
            "it offers AUTH CRAM-MD5, and not PLAIN, LOGIN or XOAUTH2"
        );
        assert_eq!(encrypted(Some(Mechanism::Xoauth2), "LOGIN").unwrap_err(), "it offers AUTH LOGIN, and not XOAUTH2");
    }

    #[test]
    fn smtp_client_sends_a_valid_host_name() {
        let name = own_name(None);
        assert_ne!(name, "");
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte)), "{name}");
    }

    #[test]
    fn refused_mail_recipient_does_not_block_the_others() {
        let (outcome, _, encrypted) = check(&START, &["550-no such\r\n550 user", "251 elsewhere now"]);
        assert_eq!(outcome.unwrap().refused, ["RCPT TO:<d@e.f>: it answers `550 no such user`"]);
        assert!(encrypted.ends_with("\r\n.\r\nQUIT\r\n"), "{encrypted}");
        let (outcome, _, encrypted) = check(&START, &["550 no", "450 later"]);
        let why = outcome.unwrap_err();
        assert!(why.contains("<d@e.f>: it answers `550 no`") && why.contains("<g@h.i>: it answers `450"), "{why}");
        assert!(!encrypted.contains("DATA"), "{encrypted}");
        // After a server closes the connection, the next recipient is not tried.
        let (outcome, ..) = check(&START, &["250 ok", "421 closing"]);
        assert!(outcome.unwrap_err().contains("`421 closing`"));
    }
}
