//! Names and URIs at a federated door.

use waffles_mcp::{Method, listing, names, uris};

use super::Page;

#[test]
fn names_and_uris() {
    let mut page = Page::new(
        "A federated door: names of tools and prompts start with their server, URIs are wrapped with it, and both lead back.",
    );
    let long = "list_all_of_the_things_that_anybody_has_ever_put_into_the_catalogue";
    for (server, name) in [
        ("shop", "search"),
        ("shop", "_search"),
        ("my-shop-2", "orders.list"),
        ("shop", "find things"),
        ("shop", "größe"),
        ("shop", ""),
        ("shop", long),
        ("a-server-with-a-name-as-long-as-names-of-servers-can-be-in-all", "search"),
        ("a-server-with-a-name-as-long-as-names-of-servers-can-be-in-all", long),
    ] {
        let public = names::join(server, name);
        let read = format!("{:?}, {} characters", names::split(&public), public.len());
        page.case(&format!("a name: {name:?} of {server}"), &[("public", &public), ("read as", &read)]);
    }
    for public in ["search", "shop__", "_search", "Shop__search", "shop_-search", "shop_search"] {
        let read = format!("{:?}", names::split(public));
        page.case("a name of no server", &[("public", public), ("read as", &read)]);
    }
    for uri in [
        "file:///README.md",
        "db://{table}/{+path}",
        "https://example.org/a",
        "wfl+other+file:///a",
        "ui://shop/cart",
    ] {
        let public = uris::wrap("shop", uri);
        let read = format!("{:?}", uris::unwrap(&public));
        page.case(&format!("a URI: {uri} of shop"), &[("public", &public), ("read as", &read)]);
    }
    let wrap = |uri: &str| Some(uris::wrap("shop", uri));
    for (method, came) in [
        (
            Method::ToolsCall,
            r#"{"content":[{"type":"resource_link","name":"a","uri":"db://a"},{"type":"resource","resource":{"uri":"db:\/\/b","text":"db://b"}},{"type":"text","text":"db://c"}]}"#,
        ),
        (
            Method::PromptsGet,
            r#"{"messages":[{"role":"user","content":{"type":"resource","resource":{"uri":"db://a","text":"a"}}}]}"#,
        ),
        (
            Method::ResourcesRead,
            r#"{"contents":[{"uri":"db://a","text":"a"},{"uri":"https://example.org/b","text":"b"}]}"#,
        ),
    ] {
        let leaves = uris::map_uris(&method, came.as_bytes(), &wrap).unwrap().unwrap();
        page.pair(&format!("URIs in the result of {method}"), came, leaves);
    }
    let tool = r#"{"description":"uses search","name":"search","inputSchema":{ "type":"object" }}"#;
    let leaves = listing::renamed(tool.as_bytes(), "name", &names::join("shop", "search"));
    page.pair("an entry of a list", tool, leaves);
    page.check("names-and-uris.txt");
}
