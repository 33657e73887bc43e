using System.Globalization;
using System.Text;

namespace BlockServer.Blockd;

/// <summary>What a metric is.</summary>
internal enum MetricKind
{
    /// <summary>Goes up and down.</summary>
    Gauge,

    /// <summary>Only grows while the daemon runs.</summary>
    Counter,

    /// <summary>Counts of what took how long.</summary>
    Histogram,
}

/// <summary>
/// Writes metrics as text: OpenMetrics 1.0, or the older format of Prometheus that everybody reads. Families one after the
/// other, each with all its samples. Label values are the operator's names, never what a client sent.
/// </summary>
internal sealed class MetricsWriter(bool isOpenMetrics)
{
    /// <summary>Content type of the older format.</summary>
    public const string PlainType = "text/plain; version=0.0.4; charset=utf-8";

    /// <summary>Content type of OpenMetrics.</summary>
    public const string OpenType = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    // Of the histograms' 28 powers of two every other one: 16 us to 17 s.
    private const int FirstBound = 4, LastBound = 24;

    private readonly StringBuilder _text = new();
    private string _name = "";

    /// <summary>Begins a family. A counter's name ends in _total.</summary>
    public void Family(string name, MetricKind kind, string help)
    {
        _name = name;
        string family = isOpenMetrics && kind == MetricKind.Counter ? name[..^"_total".Length] : name;
        _text.Append("# HELP ").Append(family).Append(' ').Append(Escape(help, isHelp: true)).Append('\n');
        _text.Append("# TYPE ").Append(family).Append(' ').Append(kind.ToString().ToLowerInvariant()).Append('\n');
    }

    /// <summary>A sample of the family begun last.</summary>
    public void Sample(double value, params ReadOnlySpan<(string Name, string Value)> labels) => Write("", value, labels, null);

    /// <summary>A histogram whose bucket i counts what took less than 2^i microseconds, and how long all took, nanoseconds.</summary>
    public void Histogram(IReadOnlyList<ulong> buckets, ulong nanos, params ReadOnlySpan<(string Name, string Value)> labels)
    {
        ulong seen = 0;
        for (int i = 0; i < buckets.Count; i++)
        {
            seen += buckets[i];
            if (i is >= FirstBound and <= LastBound && (i & 1) == 0)
                Write("_bucket", seen, labels, ((1UL << i) / 1e6).ToString("0.0#####", CultureInfo.InvariantCulture));
        }

        Write("_bucket", seen, labels, "+Inf");
        Write("_sum", nanos / 1e9, labels, null);
        Write("_count", seen, labels, null);
    }

    /// <summary>All of it.</summary>
    public string Finish() => isOpenMetrics ? _text.Append("# EOF\n").ToString() : _text.ToString();

    private void Write(string suffix, double value, ReadOnlySpan<(string Name, string Value)> labels, string? bound)
    {
        _text.Append(_name).Append(suffix);
        if (labels.Length > 0 || bound is not null)
        {
            char before = '{';
            foreach ((string name, string text) in labels)
            {
                _text.Append(before).Append(name).Append("=\"").Append(Escape(text, isHelp: false)).Append('"');
                before = ',';
            }

            if (bound is not null) _text.Append(before).Append("le=\"").Append(bound).Append('"');
            _text.Append('}');
        }

        _text.Append(' ').Append(value.ToString("R", CultureInfo.InvariantCulture)).Append('\n');
    }

    private string Escape(string text, bool isHelp)
    {
        string escaped = text.Replace("\\", "\\\\", StringComparison.Ordinal).Replace("\n", "\\n", StringComparison.Ordinal);
        return isHelp && !isOpenMetrics ? escaped : escaped.Replace("\"", "\\\"", StringComparison.Ordinal);
    }
}
