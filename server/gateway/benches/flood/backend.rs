//! The server behind the gateway.

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::client::VALID_KEY;

/// Prints its address and serves until the process is killed.
pub(crate) async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let _ = stream.set_nodelay(true);
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
    }
}

/// 401 to a wrong key. Health checks have none.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let key = request.headers().get(AUTHORIZATION);
    let (status, text) = match key.is_none_or(|key| key.as_bytes() == VALID_KEY.as_bytes()) {
        true => (StatusCode::OK, r#"{"data":[]}"#),
        false => (StatusCode::UNAUTHORIZED, r#"{"error":{"code":"invalid_api_key"}}"#),
    };
    // What is not kept takes no memory here.
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    Ok(response)
}
