use super::*;

fn close(a: Option<f64>, b: f64) -> bool {
    a.is_some_and(|a| (a - b).abs() < 1e-9)
}

fn labels(axis: &Axis) -> Vec<&str> {
    axis.ticks.iter().map(|(_, label)| &**label).collect()
}

fn mark(x: f64, y: f64) -> Mark {
    Mark { x, y, least: y, most: y }
}

fn page(lines: Vec<Line>) -> Page {
    let values = lines.iter().flat_map(|line| &line.marks).map(|mark| mark.y);
    let panel = Panel {
        title: "a < b & c".into(),
        x: Axis::marked("clients", Scale::Log, vec![(1.0, "1".into()), (10.0, "10".into()), (100.0, "100".into())]),
        y: Axis::log("operations/s", values),
        lines,
        level: Some((20.0, "cores".into())),
    };
    Page {
        title: "a > b".into(),
        legend: vec!["puts".into()],
        dashed: Some("load generator".into()),
        panels: vec![panel.clone(), panel],
        notes: vec!["none".into(), "nothing".into()],
    }
}

/// The elements of this name, as XML.
fn elements<'a>(document: &'a roxmltree::Document<'_>, name: &str) -> Vec<roxmltree::Node<'a, 'a>> {
    document.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", name))).collect()
}

#[test]
fn equal_ratios_are_equal_distances_on_a_logarithmic_axis() {
    let axis = Axis::log("", [10.0, 1000.0]);
    assert!(
        close(axis.place(10.0), 0.0) && close(axis.place(100.0), 0.5) && close(axis.place(1000.0), 1.0),
        "{axis:?}"
    );
    assert_eq!(labels(&axis), ["10", "20", "50", "100", "200", "500", "1000"]);
    for nowhere in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(axis.place(nowhere), None);
    }
}

#[test]
fn a_logarithmic_axis_ends_at_the_round_numbers_around_its_values() {
    let axis = Axis::log("", [0.66, 13.0, f64::NAN, 0.0]);
    assert!(close(axis.place(0.5), 0.0) && close(axis.place(20.0), 1.0), "{axis:?}");
    let wide = Axis::log("", [1.0, 60_000.0]);
    assert_eq!(labels(&wide), ["1", "10", "100", "1000", "10k", "100k"]);
    for values in [vec![], vec![5.0], vec![5.0, 5.0], vec![1e-9], vec![1e12]] {
        let axis = Axis::log("", values.clone());
        assert!(axis.low < axis.high && !axis.ticks.is_empty(), "{values:?}: {axis:?}");
        assert!(values.iter().all(|value| axis.place(*value).is_some_and(|place| (0.0..=1.0).contains(&place))));
    }
}

#[test]
fn a_linear_axis_begins_at_zero() {
    let axis = Axis::linear("", [0.4, 1.9]);
    assert!(close(axis.place(0.0), 0.0) && close(axis.place(1.0), 0.5), "{axis:?}");
    assert_eq!(labels(&axis), ["0", "0.5", "1", "1.5", "2"]);
    assert_eq!(labels(&Axis::linear("", [])), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
}

#[test]
fn categories_stand_at_equal_distances_in_their_order() {
    let ticks = [0.0, 1.0, 10.0, 50.0].map(|value| (value, number(value)));
    let axis = Axis::marked("", Scale::Categories(vec![0.0, 1.0, 10.0, 50.0]), ticks.into());
    let places: Vec<_> = [0.0, 1.0, 10.0, 50.0].iter().map(|value| axis.place(*value).unwrap()).collect();
    let steps: Vec<_> = places.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        places[0] > 0.0 && places[3] < 1.0 && steps.iter().all(|step| (step - steps[0]).abs() < 1e-9),
        "{places:?}"
    );
    assert_eq!(axis.place(5.0), None);
}

#[test]
fn numbers_are_short() {
    let short = [0.0, 0.05, 0.5, 1.0, 1.5, 20.0, 500.0, 5000.0, 20_000.0, 1e6, 2.5e6].map(number);
    assert_eq!(short, ["0", "0.05", "0.5", "1", "1.5", "20", "500", "5000", "20k", "1M", "2.5M"]);
}

#[test]
fn a_page_is_xml_in_which_every_number_is_one_and_every_point_is_within() {
    let line = Line { colour: 0, dashed: false, marks: vec![mark(1.0, 5.0), mark(10.0, 50.0), mark(100.0, 20.0)] };
    let dashed = Line { colour: 1, dashed: true, marks: vec![mark(1.0, 1.0), mark(100.0, 7.0)] };
    let svg = page(vec![line, dashed]).to_svg();
    let document = roxmltree::Document::parse(&svg).unwrap();
    let root = document.root_element();
    let size = |name| root.attribute(name).unwrap().parse::<f64>().unwrap();
    let (width, height) = (size("width"), size("height"));
    let background = elements(&document, "rect")[0];
    assert_eq!((background.attribute("fill"), background.attribute("x")), (Some("#ffffff"), None));
    assert_eq!(elements(&document, "circle").len(), 10, "five points in each of two panels");
    assert_eq!(elements(&document, "polyline").len(), 4);
    for circle in elements(&document, "circle") {
        let at = |name| circle.attribute(name).unwrap().parse::<f64>().unwrap();
        assert!((0.0..width).contains(&at("cx")) && (0.0..height).contains(&at("cy")), "{circle:?}");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
    let texts: Vec<_> = elements(&document, "text").iter().filter_map(|node| node.text()).collect();
    for text in ["a > b", "a < b & c", "clients", "operations/s", "puts", "load generator", "cores", "none", "nothing"]
    {
        assert!(texts.contains(&text), "{text:?} is not in {texts:?}");
    }
}

/// A value ten times as large is a third of the way up where the axis has three decades.
#[test]
fn a_point_is_drawn_where_its_axes_say() {
    let line = Line { colour: 0, dashed: false, marks: vec![mark(1.0, 1.0), mark(10.0, 10.0), mark(100.0, 1000.0)] };
    let svg = page(vec![line]).to_svg();
    let document = roxmltree::Document::parse(&svg).unwrap();
    let points: Vec<Vec<f64>> = elements(&document, "polyline")[0]
        .attribute("points")
        .unwrap()
        .split(' ')
        .map(|point| point.split(',').map(|number| number.parse().unwrap()).collect())
        .collect();
    let [a, b, c] = &points[..] else { panic!("{points:?}") };
    assert!(((b[0] - a[0]) - (c[0] - b[0])).abs() < 0.2, "{points:?}");
    assert!(((a[1] - b[1]) * 3.0 - (a[1] - c[1])).abs() < 0.4 && a[1] > c[1], "{points:?}");
}

#[test]
fn what_has_no_place_is_left_out() {
    let line = Line { colour: 0, dashed: false, marks: vec![mark(1.0, 5.0), mark(10.0, f64::NAN), mark(0.0, 5.0)] };
    let svg = page(vec![line]).to_svg();
    let document = roxmltree::Document::parse(&svg).unwrap();
    assert_eq!(elements(&document, "circle").len(), 2, "one in each panel");
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}
