using System.Text.Json;

namespace BlockServer.Blockd;

/// <summary>
/// Where settings come from: a JSON file, then the environment, then the command line, the later winning as a whole (a list
/// is replaced, not lengthened). Pure but for reading the file; refuses what it does not know.
/// </summary>
internal sealed class SettingsSources
{
    /// <summary>What every variable of the environment begins with.</summary>
    public const string Prefix = "BLOCKD_";

    // Variables with our prefix that are no settings: the file to read, and what is pfcli's.
    private static readonly string[] s_others = [Prefix + "CONFIG", Prefix + "TOKEN_FILE", Prefix + "CA_FILE"];

    private readonly Dictionary<string, IReadOnlyList<string>> _values = new(StringComparer.Ordinal);
    private readonly Dictionary<string, string> _origins = new(StringComparer.Ordinal);

    /// <summary>Raw texts by setting.</summary>
    public IReadOnlyDictionary<string, IReadOnlyList<string>> Values => _values;

    /// <summary>What was odd and is not refused, sentences.</summary>
    public List<string> Warnings { get; } = [];

    /// <summary>The variable of a setting: <c>BLOCKD_STORE_SIZE</c> for <c>store-size</c>.</summary>
    public static string VariableOf(string setting) => Prefix + setting.ToUpperInvariant().Replace('-', '_');

    /// <summary>Reads a JSON file. Throws <see cref="SettingException"/>.</summary>
    public void AddFile(string path)
    {
        try
        {
            AddJson(File.ReadAllBytes(path), path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new SettingException("--config", path, "it cannot be read: " + e.Message);
        }
    }

    /// <summary>Takes the settings of a JSON object: strings, numbers, true, false, and lists of them.</summary>
    public void AddJson(ReadOnlyMemory<byte> json, string path)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(
                json, new JsonDocumentOptions { CommentHandling = JsonCommentHandling.Skip, AllowTrailingCommas = true, AllowDuplicateProperties = false });
            if (document.RootElement.ValueKind != JsonValueKind.Object) throw new SettingException("--config", path, "it must hold one JSON object");
            foreach (JsonProperty property in document.RootElement.EnumerateObject())
            {
                string name = property.Name;
                if (!SettingsReader.IsKnown(name)) throw Unknown(name, path);
                string[] texts = property.Value.ValueKind == JsonValueKind.Array
                    ? [.. property.Value.EnumerateArray().Select(e => TextOf(name, e, path))]
                    : [TextOf(name, property.Value, path)];
                Set(name, texts, path);
            }
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException) // the latter: text that is no UTF-8
        {
            throw new SettingException("--config", path, "it is not JSON: " + e.Message);
        }
    }

    /// <summary>Takes the settings of the environment. A variable with our prefix that is no setting is only warned of:
    /// orchestrators make such variables from the name of a service.</summary>
    public void AddEnvironment(IEnumerable<KeyValuePair<string, string>> environment)
    {
        var settings = SettingsReader.All.ToDictionary(s => VariableOf(s.Name), StringComparer.Ordinal);
        foreach ((string variable, string text) in environment.OrderBy(v => v.Key, StringComparer.Ordinal))
        {
            if (!variable.StartsWith(Prefix, StringComparison.Ordinal) || s_others.Contains(variable) || text.Length == 0) continue;
            if (settings.TryGetValue(variable, out (string Name, string Value, bool IsMany, string Help) setting))
                Set(setting.Name, setting.IsMany ? text.Split(' ', StringSplitOptions.RemoveEmptyEntries) : [text], "$" + variable);
            else
                Warnings.Add($"{variable} in the environment is no setting and is ignored{DidYouMean(variable, settings.Keys)}");
        }
    }

    /// <summary>Takes one setting of the command line.</summary>
    public void AddArgument(string name, IReadOnlyList<string> texts) => Set(name, texts, null);

    /// <summary>Checks everything. Throws <see cref="SettingException"/>, which says where the setting came from.</summary>
    public Settings Read(string defaultDataDir, ulong ramBytes)
    {
        try
        {
            return SettingsReader.Read(_values, defaultDataDir, ramBytes);
        }
        catch (SettingException e) when (_origins.TryGetValue(e.Name.TrimStart('-'), out string? origin))
        {
            throw new SettingException(e, origin);
        }
    }

    /// <summary>Refuses a name, with the nearest one that exists.</summary>
    public static SettingException Unknown(string name, string? origin)
    {
        string near = DidYouMean(name, SettingsReader.All.Select(s => s.Name));
        return new SettingException(
            $"'{name}'{(origin is null ? "" : " in " + origin)} is no setting{near}; known: {string.Join(", ", SettingsReader.All.Select(s => s.Name))}", name);
    }

    /// <summary>"; did you mean X?" when a name is near enough to be meant, else nothing.</summary>
    public static string DidYouMean(string wrong, IEnumerable<string> names)
    {
        (string? best, int distance) = (null, int.MaxValue);
        foreach (string name in names.Order(StringComparer.Ordinal))
        {
            int d = Distance(wrong.ToLowerInvariant().Replace('_', '-'), name.ToLowerInvariant().Replace('_', '-'));
            if (d < distance) (best, distance) = (name, d);
        }

        return distance <= Math.Max(2, wrong.Length / 3) ? $"; did you mean {best}?" : "";
    }

    // Levenshtein's: how many letters to put, drop or change.
    private static int Distance(string one, string other)
    {
        int[] row = [.. Enumerable.Range(0, other.Length + 1)];
        for (int i = 1; i <= one.Length; i++)
        {
            (int diagonal, row[0]) = (row[0], i);
            for (int j = 1; j <= other.Length; j++)
            {
                int change = diagonal + (one[i - 1] == other[j - 1] ? 0 : 1);
                diagonal = row[j];
                row[j] = Math.Min(change, Math.Min(row[j], row[j - 1]) + 1);
            }
        }

        return row[^1];
    }

    private static string TextOf(string name, JsonElement element, string path) => element.ValueKind switch
    {
        JsonValueKind.String => element.GetString()!,
        JsonValueKind.True => "true",
        JsonValueKind.False => "false",
        JsonValueKind.Number => element.GetRawText(),
        _ => throw new SettingException($"--{name}", element.GetRawText(), $"write a text, a number, true, false or a list of texts (in {path})"),
    };

    private void Set(string name, IReadOnlyList<string> texts, string? origin)
    {
        _values[name] = texts;
        if (origin is null) _origins.Remove(name);
        else _origins[name] = origin;
    }
}
