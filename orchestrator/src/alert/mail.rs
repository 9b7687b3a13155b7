//! One mail by SMTP (RFC 5321): as much of it as a message of ours needs.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::ServerName;
use textnlp_provider::alert::Alert;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::destination::{Mail, MailTls};
use super::{Arrived, TOLD, Unsent};

/// The longest line of an answer, in bytes; the protocol allows 512.
const LINE: u64 = 4096;

/// The most lines of one answer.
const LINES: usize = 100;

/// What can be written to and read from: the connection as it is, or sealed.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Sealed = Box<dyn Stream>;

/// Delivers a message to the server, which takes it on.
pub(super) async fn send(mail: &Mail, alert: &Alert, tls: &Arc<rustls::ClientConfig>) -> Result<Arrived, Unsent> {
    deliver(mail, alert, tls).await.map_err(|because| Unsent::Mail { to: mail.server(), because })
}

async fn deliver(mail: &Mail, alert: &Alert, tls: &Arc<rustls::ClientConfig>) -> Result<Arrived, String> {
    let plain = TcpStream::connect((mail.host.as_str(), mail.port)).await.map_err(|error| error.to_string())?;
    let plain: Sealed = Box::new(plain);
    let mut talk = match mail.tls {
        MailTls::Implicit => Talk::over(seal(plain, mail, tls).await?),
        MailTls::Start | MailTls::Off => Talk::over(plain),
    };
    talk.expect(220, "its greeting").await?;
    let mut offers = talk.ask("EHLO localhost", 250).await?;
    if mail.tls == MailTls::Start {
        if !offers.iter().any(|line| line.eq_ignore_ascii_case("STARTTLS")) {
            return Err("it offers no STARTTLS, and nothing is sent in the clear".to_owned());
        }
        talk.ask("STARTTLS", 220).await?;
        // Whoever slipped words in before the seal would be heard as the server afterwards.
        let stream = talk.into_unread().ok_or("it spoke on after STARTTLS")?;
        talk = Talk::over(seal(stream, mail, tls).await?);
        offers = talk.ask("EHLO localhost", 250).await?;
    }
    if let Some((user, password)) = &mail.login {
        let plain = |line: &String| {
            let mut words = line.split_ascii_whitespace();
            words.next().is_some_and(|first| first.eq_ignore_ascii_case("AUTH"))
                && words.any(|word| word.eq_ignore_ascii_case("PLAIN"))
        };
        if !offers.iter().any(plain) {
            return Err("it offers no AUTH PLAIN".to_owned());
        }
        let secret = [b"\0", user.as_bytes(), b"\0", password.expose()].concat();
        talk.ask_quietly(&format!("AUTH PLAIN {}", BASE64_STANDARD.encode(secret)), "AUTH PLAIN", 235).await?;
    }
    talk.ask(&format!("MAIL FROM:<{}>", mail.from), 250).await?;
    let mut refused = Vec::new();
    for to in &mail.to {
        let line = format!("RCPT TO:<{to}>");
        talk.say(&line, &line).await?;
        match talk.answer(&line).await? {
            // 251: it passes it on to where that recipient is now.
            (250 | 251, _) => {}
            // It ends the conversation, whoever the recipient is.
            (code @ 421, lines) => return Err(unexpected(&line, code, &lines)),
            // One address that is no more must not keep the others from hearing.
            (code, lines) => refused.push(unexpected(&line, code, &lines)),
        }
    }
    if refused.len() == mail.to.len() {
        return Err(refused.join("; "));
    }
    talk.ask("DATA", 354).await?;
    talk.ask_quietly(&format!("{}\r\n.", message(mail, alert)), "the message", 250).await?;
    // It is delivered; whether the farewell arrives changes nothing.
    let _ = talk.ask("QUIT", 221).await;
    Ok(Arrived { refused })
}

async fn seal(stream: Sealed, mail: &Mail, tls: &Arc<rustls::ClientConfig>) -> Result<Sealed, String> {
    let name =
        ServerName::try_from(mail.host.clone()).map_err(|_| format!("`{}` is no name of a server", mail.host))?;
    let sealed = TlsConnector::from(tls.clone()).connect(name, stream).await.map_err(|error| error.to_string())?;
    Ok(Box::new(sealed))
}

/// One side of the conversation.
struct Talk {
    stream: BufReader<Sealed>,
}

impl Talk {
    fn over(stream: Sealed) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    fn into_unread(self) -> Option<Sealed> {
        self.stream.buffer().is_empty().then(|| self.stream.into_inner())
    }

    async fn ask(&mut self, line: &str, expected: u16) -> Result<Vec<String>, String> {
        self.ask_quietly(line, line, expected).await
    }

    /// Says something that is named otherwise when it is refused.
    async fn ask_quietly(&mut self, line: &str, named: &str, expected: u16) -> Result<Vec<String>, String> {
        self.say(line, named).await?;
        self.expect(expected, named).await
    }

    async fn say(&mut self, line: &str, named: &str) -> Result<(), String> {
        let sent = async {
            // In one piece, as some servers expect it.
            self.stream.write_all(&[line.as_bytes(), b"\r\n"].concat()).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error: std::io::Error| format!("{named}: {error}"))
    }

    /// An answer of this code, without the code.
    async fn expect(&mut self, expected: u16, to: &str) -> Result<Vec<String>, String> {
        match self.answer(to).await? {
            (code, lines) if code == expected => Ok(lines),
            (code, lines) => Err(unexpected(to, code, &lines)),
        }
    }

    /// An answer: its code, and what it says. Several lines are one answer; what follows it is the answer to something else.
    async fn answer(&mut self, to: &str) -> Result<(u16, Vec<String>), String> {
        let (mut answered, mut lines) = (None, Vec::new());
        loop {
            let mut raw = Vec::new();
            let read = (&mut self.stream).take(LINE).read_until(b'\n', &mut raw).await;
            let text = String::from_utf8_lossy(&raw).trim_end().to_owned();
            read.map_err(|error| format!("{to}: {error}"))?;
            if !raw.ends_with(b"\n") || lines.len() == LINES {
                return Err(format!("{to}: it breaks off, or talks without an end"));
            }
            let code = text.get(..3).and_then(|code| code.parse::<u16>().ok());
            let Some(code) = code.filter(|code| answered.is_none_or(|answered| answered == *code)) else {
                return Err(format!("{to}: it answers `{}`", told(&text)));
            };
            answered = Some(code);
            lines.push(text.get(4..).unwrap_or_default().to_owned());
            if text.as_bytes().get(3) != Some(&b'-') {
                return Ok((code, lines));
            }
        }
    }
}

/// A refusal, or an answer to something else, for people.
fn unexpected(to: &str, code: u16, lines: &[String]) -> String {
    format!("{to}: it answers `{}`", told(&format!("{code} {}", lines.join(" "))))
}

fn told(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TOLD).collect()
}

/// The message with its head. Its body is in base64: no line of it can be taken for a command.
fn message(mail: &Mail, alert: &Alert) -> String {
    let subject: String =
        alert.to_string().chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).take(TOLD).collect();
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

    /// Answers the words before the seal with these lines, one after the other, and then keeps to the protocol under it, with these
    /// words for each recipient. What was heard
    /// before it, and after it.
    async fn server(
        listener: TcpListener,
        acceptor: TlsAcceptor,
        before: &[&str],
        recipients: &[&str],
    ) -> (String, String) {
        let mut recipients = recipients.iter();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = String::new();
        for line in before {
            stream.write_all(line.as_bytes()).await.unwrap();
            let mut words = [0; 500];
            let read = stream.read(&mut words).await.unwrap_or(0);
            heard += &String::from_utf8_lossy(&words[..read]);
        }
        if !heard.ends_with("STARTTLS\r\n") {
            return (heard, String::new());
        }
        stream.write_all(b"220 go\r\n").await.unwrap();
        let Ok(stream) = acceptor.accept(stream).await else { return (heard, String::new()) };
        let (mut stream, mut sealed) = (BufReader::new(stream), String::new());
        let mut in_data = false;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return (heard, sealed);
            }
            sealed += &line;
            let answer = match line.trim_end() {
                "." => "250 kept",
                _ if in_data => continue,
                "EHLO localhost" => "250-here\r\n250 AUTH LOGIN PLAIN",
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

    /// What came of it, what was heard in the clear, what under the seal.
    fn check(before: &[&str], recipients: &[&str]) -> (Result<Arrived, String>, String, String) {
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
            let mail = Mail { host, port, tls: MailTls::Start, login, from, to };
            let message = alert();
            let (said, heard) =
                tokio::join!(deliver(&mail, &message, &tls), server(listener, acceptor, before, recipients));
            (said, heard.0, heard.1)
        })
    }

    #[test]
    fn the_connection_is_sealed_before_anything_that_matters_is_said() {
        let (said, clear, sealed) = check(&START, &["250 ok"]);
        assert_eq!(said.unwrap(), Arrived::default());
        assert_eq!(clear, "EHLO localhost\r\nSTARTTLS\r\n");
        assert!(sealed.contains("AUTH PLAIN AGFkYQBodW50ZXIy") && sealed.contains("RCPT TO:<d@e.f>"), "{sealed}");
        assert!(sealed.ends_with("\r\n.\r\nQUIT\r\n"), "{sealed}");

        let (said, clear, _) = check(&["220 here\r\n", "250-here\r\n250 AUTH PLAIN\r\n"], &["250 ok"]);
        assert!(said.unwrap_err().contains("offers no STARTTLS"));
        assert_eq!(clear, "EHLO localhost\r\n");
        // Words that came before the seal would be taken for the server's.
        let (said, _, sealed) = check(&["220 here\r\n", "250 STARTTLS\r\n220 go\r\n250 AUTH PLAIN\r\n"], &["250 ok"]);
        assert!(said.is_err() && sealed.is_empty(), "{said:?}");
        let (said, ..) = check(&["554 go away\r\n"], &["250 ok"]);
        assert!(said.unwrap_err().contains("`554 go away`"));
    }

    #[test]
    fn one_recipient_who_is_refused_keeps_it_from_nobody_else() {
        let (said, _, sealed) = check(&START, &["550-no such\r\n550 user", "251 elsewhere now"]);
        assert_eq!(said.unwrap().refused, ["RCPT TO:<d@e.f>: it answers `550 no such user`"]);
        assert!(sealed.ends_with("\r\n.\r\nQUIT\r\n"), "{sealed}");
        let (said, _, sealed) = check(&START, &["550 no", "450 later"]);
        let why = said.unwrap_err();
        assert!(why.contains("<d@e.f>: it answers `550 no`") && why.contains("<g@h.i>: it answers `450"), "{why}");
        assert!(!sealed.contains("DATA"), "{sealed}");
        // A server that hangs up is not asked for the next one.
        let (said, ..) = check(&START, &["250 ok", "421 closing"]);
        assert!(said.unwrap_err().contains("`421 closing`"));
    }
}
