using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using Spectre.Console;

namespace BlockServer.Pfcli;

/// <summary>Writes what a command found: a drawn table on a terminal, aligned text elsewhere, JSON when asked.</summary>
public sealed class Printer(CliHost host, bool json)
{
    /// <summary>JSON was asked for: nothing else goes to standard output.</summary>
    public bool Json => json;

    /// <summary>Writes a sentence, unless JSON was asked for.</summary>
    public void Line(string text)
    {
        if (!json) host.Out.WriteLine(Clean(text));
    }

    /// <summary>Writes <paramref name="value"/> as one line of JSON when that was asked for; tells whether it was.</summary>
    public bool TryJson<T>(T value, JsonTypeInfo<T> type)
    {
        if (json) host.Out.WriteLine(JsonSerializer.Serialize(value, type));
        return json;
    }

    /// <summary>Writes rows under their headings.</summary>
    public void Table(IReadOnlyList<string> headings, IReadOnlyList<string[]> rows)
    {
        if (host.OutIsTerminal) DrawTable(headings, rows);
        else PlainTable(headings, rows);
    }

    /// <summary>Writes names and values, one pair a line.</summary>
    public void Pairs(IReadOnlyList<(string Name, string Value)> pairs)
    {
        int width = pairs.Max(pair => pair.Name.Length);
        foreach ((string name, string value) in pairs)
            host.Out.WriteLine(name.PadRight(width) + "  " + Clean(value));
    }

    /// <summary>Replaces control characters: a name from the network must not steer the terminal.</summary>
    public static string Clean(string? text)
    {
        if (string.IsNullOrEmpty(text)) return "";
        var clean = new StringBuilder(text.Length);
        foreach (char c in text)
            clean.Append(char.IsControl(c) || CharUnicodeInfo.GetUnicodeCategory(c) == UnicodeCategory.Format ? ' ' : c);
        return clean.ToString();
    }

    private void DrawTable(IReadOnlyList<string> headings, IReadOnlyList<string[]> rows)
    {
        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings
        {
            Ansi = AnsiSupport.No,
            ColorSystem = ColorSystemSupport.NoColors,
            Interactive = InteractionSupport.No,
            Out = new AnsiConsoleOutput(host.Out),
        });
        console.Profile.Width = host.Width;
        console.Profile.Capabilities.Unicode = true;
        var table = new Table { Border = TableBorder.Rounded };
        foreach (string heading in headings) table.AddColumn(new TableColumn(new Text(heading)));
        foreach (string[] row in rows) table.AddRow(row.Select(cell => new Text(Clean(cell))));
        console.Write(table);
    }

    private void PlainTable(IReadOnlyList<string> headings, IReadOnlyList<string[]> rows)
    {
        var widths = headings.Select(heading => heading.Length).ToArray();
        foreach (string[] row in rows)
        {
            for (int i = 0; i < widths.Length; i++) widths[i] = Math.Max(widths[i], Clean(row[i]).Length);
        }

        PlainRow(headings, widths);
        foreach (string[] row in rows) PlainRow(row, widths);
    }

    private void PlainRow(IReadOnlyList<string> cells, int[] widths)
    {
        var line = new StringBuilder();
        for (int i = 0; i < widths.Length; i++) line.Append(Clean(cells[i]).PadRight(widths[i] + 2));
        host.Out.WriteLine(line.ToString().TrimEnd());
    }
}
