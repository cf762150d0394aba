//! The status page, and the headers that keep it to itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use sha2::{Digest as _, Sha256};

/// All of it: style and script are inside, and it loads nothing but /status.json.
const HTML: &str = include_str!("page.html");

/// The page with its headers.
pub(super) struct Page {
    policy: String,
}

impl Page {
    pub(super) fn new() -> Self {
        // By hash, so that whatever else may come to stand in the page, it is neither run nor obeyed.
        let [style, script] = ["style", "script"].map(|tag| hash(inside(HTML, tag)));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src 'self'; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        Self { policy }
    }

    pub(super) fn answer(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from_static(HTML.as_bytes())));
        let headers = response.headers_mut();
        if let Ok(policy) = HeaderValue::from_str(&self.policy) {
            headers.insert(CONTENT_SECURITY_POLICY, policy);
        }
        let fixed: [(HeaderName, &'static str); 4] = [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CACHE_CONTROL, "no-store"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
        ];
        for (name, value) in fixed {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

fn hash(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text.as_bytes()))
}

/// What stands between the page's only `<tag>` and its end.
fn inside<'a>(html: &'a str, tag: &str) -> &'a str {
    let begun = html.split_once(&format!("<{tag}>")).map(|(_, rest)| rest);
    let ended = begun.and_then(|rest| rest.split_once(&format!("</{tag}>")));
    ended.map(|(inside, _)| inside).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_holds_all_it_needs_and_obeys_its_own_policy() {
        for tag in ["style", "script"] {
            assert_eq!(
                HTML.matches(&format!("<{tag}")).count(),
                1,
                "one {tag}, without attributes"
            );
            assert!(inside(HTML, tag).len() > 1_000);
        }
        for forbidden in ["http:", "https:", "src=", "@import", "innerHTML", "outerHTML", "eval("] {
            let svg_name = "http://www.w3.org/2000/svg";
            assert!(!HTML.replace(svg_name, "").contains(forbidden), "{forbidden}");
        }
        let handler =
            HTML.split([' ', '\n']).find(|word| word.starts_with("on") && word.contains("=\""));
        assert_eq!(handler, None, "handlers in attributes are not run");
        assert!(!HTML.contains("style=\""), "styles in attributes are not obeyed");
        assert!(HTML.len() < 64 * 1024);
    }

    #[test]
    fn its_headers_let_nothing_else_run() {
        let response = Page::new().answer();
        let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert!(policy.contains(&hash(inside(HTML, "script"))), "{policy}");
    }
}
