package demo

import (
	"fmt"
	"html"
	"io"
	"slices"
	"strings"
	"time"
)

// The picture's geometry, in SVG units.
const (
	chartLeft   = 90
	chartWidth  = 1080
	chartHeight = 130
	chartGap    = 56
	chartTop    = 60
)

var directorColours = []string{"#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2", "#6cc5b0", "#9c6b4e", "#97bbf5"}

// A series is one line of a chart.
type series struct {
	name, colour string
	y            []float64
	fill         bool
}

// WriteHTML writes the report as one HTML file: the timeline as a picture, the
// failovers as a table.
func (r *Report) WriteHTML(w io.Writer) error {
	var b strings.Builder
	verdict := "Every flow that was established lived on."
	if err := r.Err(); err != nil {
		verdict = "Not kept: " + err.Error() + "."
	}
	fmt.Fprintf(&b, `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>saru and syncd: %d power cuts</title><style>
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1220px;color:#222}
table{border-collapse:collapse}td,th{padding:.25em .9em;text-align:right;border-bottom:1px solid #ddd}
svg text{font:12px system-ui,sans-serif;fill:#444}.title{font-weight:600;fill:#222}
</style></head><body><h1>%d power cuts, %d directors</h1><p>%s</p><p>Kernel %s, connection sync by %s. Emulated machines: compare times, do not quote them.</p>
`, len(r.Failovers), len(r.Failovers), r.Plan.Directors, html.EscapeString(verdict), html.EscapeString(r.Kernel), html.EscapeString(r.Plan.Sync))
	r.svg(&b)
	r.table(&b)
	b.WriteString("</body></html>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) table(b *strings.Builder) {
	b.WriteString("<table><tr><th>#<th>director<th>detected<th>taken over<th>back with a share<th>flows open<th>lost<th>longest stall</tr>\n")
	for i, fo := range r.Failovers {
		fmt.Fprintf(b, "<tr><td>%d<td>%s<td>%s<td>%s<td>%s<td>%d<td>%d<td>%s</tr>\n", i+1, html.EscapeString(fo.Director),
			show(fo.Detected), show(fo.TakenOver), show(fo.Returned), fo.Open, fo.Lost, show(fo.Stall))
	}
	b.WriteString("</table>\n")
}

func (r *Report) svg(b *strings.Builder) {
	if len(r.Samples) < 2 {
		return
	}
	charts := []struct {
		title string
		lines []series
	}{
		{"share of each director (buckets, stacked)", r.shareSeries()},
		{"downloads, kB/s verified", []series{{"", "#4269d0", r.rate(func(s *Sample) int64 { return s.Bytes }, 1e3), true}}},
		{"quiet lines and short requests, per second", []series{
			{"short requests", "#3ca951", r.rate(func(s *Sample) int64 { return s.Short }, 1), false},
			{"quiet lines", "#a463f2", r.rate(func(s *Sample) int64 { return s.Lines }, 1), false},
		}},
		{"long flows", []series{
			{"open", "#4269d0", r.values(func(s *Sample) float64 { return float64(s.Open) }), false},
			{"lost so far", "#d62728", r.values(func(s *Sample) float64 { return float64(s.Lost) }), false},
		}},
	}
	height := chartTop + len(charts)*(chartHeight+chartGap)
	fmt.Fprintf(b, `<svg viewBox="0 0 %d %d" xmlns="http://www.w3.org/2000/svg">`+"\n", chartLeft+chartWidth+40, height)
	for i, c := range charts {
		r.chart(b, chartTop+i*(chartHeight+chartGap), c.title, c.lines)
	}
	r.events(b, height-chartGap)
	b.WriteString("</svg>\n")
}

func (r *Report) x(t time.Time) float64 {
	span := r.Samples[len(r.Samples)-1].At.Sub(r.Samples[0].At)
	return chartLeft + chartWidth*float64(t.Sub(r.Samples[0].At))/float64(span)
}

func (r *Report) chart(b *strings.Builder, top int, title string, lines []series) {
	highest := 1.0
	for _, l := range lines {
		highest = max(highest, slices.Max(l.y))
	}
	base := float64(top + chartHeight)
	fmt.Fprintf(b, `<text class="title" x="%d" y="%d">%s</text>`, chartLeft, top-8, html.EscapeString(title))
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%.0f</text><text x="%d" y="%.0f" text-anchor="end">0</text>`, chartLeft-6, top+10, highest, chartLeft-6, base)
	fmt.Fprintf(b, `<path d="M%d %.0fH%d" stroke="#bbb"/>`+"\n", chartLeft, base, chartLeft+chartWidth)
	for i, l := range lines {
		var p strings.Builder
		for j, v := range l.y {
			op := "L"
			if j == 0 {
				op = "M"
			}
			fmt.Fprintf(&p, "%s%.1f %.1f", op, r.x(r.Samples[j].At), base-v/highest*chartHeight)
		}
		if l.fill {
			fmt.Fprintf(b, `<path d="%sL%d %.0fL%d %.0fZ" fill="%s" fill-opacity=".55"/>`+"\n", p.String(), chartLeft+chartWidth, base, chartLeft, base, l.colour)
		} else {
			fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.6"/>`+"\n", p.String(), l.colour)
		}
		if l.name != "" {
			x := chartLeft + chartWidth - 130*(len(lines)-i)
			fmt.Fprintf(b, `<rect x="%d" y="%d" width="10" height="10" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n", x, top-17, l.colour, x+14, top-8, html.EscapeString(l.name))
		}
	}
}

func (r *Report) events(b *strings.Builder, bottom int) {
	for _, s := range r.Samples {
		if s.Accident == "" {
			continue
		}
		colour := "#3ca951"
		if strings.HasPrefix(s.Accident, "power cut") {
			colour = "#d62728"
		}
		x := r.x(s.At)
		fmt.Fprintf(b, `<path d="M%.1f %dV%d" stroke="%s" stroke-dasharray="4 3"/><text x="%.1f" y="%d" transform="rotate(-20 %.1f %d)">%s</text>`+"\n",
			x, chartTop-26, bottom, colour, x+3, chartTop-30, x+3, chartTop-30, html.EscapeString(s.Accident))
	}
	first := r.Samples[0].At
	span := r.Samples[len(r.Samples)-1].At.Sub(first)
	for i := range 11 {
		t := first.Add(span * time.Duration(i) / 10)
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%.0f s</text>`, r.x(t), bottom+18, t.Sub(first).Seconds())
	}
}

// shareSeries stacks the directors' shares: the last line drawn is the lowest
// layer, so that each layer covers those above it only from below.
func (r *Report) shareSeries() []series {
	var names []string
	for _, s := range r.Samples {
		for n := range s.Shares {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	slices.Sort(names)
	out := make([]series, len(names))
	sum := make([]float64, len(r.Samples))
	for i, n := range names {
		for j, s := range r.Samples {
			sum[j] += float64(s.Shares[n])
		}
		out[len(names)-1-i] = series{n, directorColours[i%len(directorColours)], slices.Clone(sum), true}
	}
	return out
}

func (r *Report) values(f func(*Sample) float64) []float64 {
	y := make([]float64, len(r.Samples))
	for i := range r.Samples {
		y[i] = f(&r.Samples[i])
	}
	return y
}

// rate turns a counter into its growth per second, over two seconds to tame
// the samples' jitter.
func (r *Report) rate(f func(*Sample) int64, unit float64) []float64 {
	y := make([]float64, len(r.Samples))
	back := 0
	for i := range r.Samples {
		for r.Samples[i].At.Sub(r.Samples[back].At) > 2*time.Second {
			back++
		}
		if dt := r.Samples[i].At.Sub(r.Samples[back].At).Seconds(); dt > 0 {
			y[i] = float64(f(&r.Samples[i])-f(&r.Samples[back])) / dt / unit
		}
	}
	return y
}
