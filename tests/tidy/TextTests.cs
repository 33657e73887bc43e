using System.Text.RegularExpressions;
using Xunit;

namespace BlockServer.Tests.Tidy;

/// <summary>What the tracked text must not hold.</summary>
public sealed partial class TextTests
{
    /// <summary>A file longer than this is two files. It may only ever get smaller.</summary>
    private const int MaxLines = 700;

    [Fact]
    public void NoSourceIsTooLong() =>
        Assert.Empty(
            from file in Tree.Sources
            let count = Tree.Lines(file).Length
            where count > MaxLines
            select $"{file}: {count} lines, more than {MaxLines}");

    [Fact]
    public void NothingIsLeftForLater() =>
        Assert.Empty(Matches(Tree.Files.Where(IsText).Where(f => !IsTidy(f)), Later()));

    [Fact]
    public void OnlyIoIsUnsafe()
    {
        IEnumerable<string> outside = Tree.Files.Where(f => !f.StartsWith("io/", StringComparison.Ordinal));
        Assert.Empty(Matches(outside.Where(f => f.EndsWith(".cs", StringComparison.Ordinal) && !IsTidy(f)), Unsafe()));
        Assert.Empty(
            from file in outside
            where file.EndsWith(".csproj", StringComparison.Ordinal)
            where Tree.Read(file).Contains("AllowUnsafeBlocks", StringComparison.Ordinal)
            select file);
    }

    [Fact]
    public void NoMachineIsNamed() =>
        Assert.Empty(Matches(Tree.Files.Where(IsText).Where(f => !IsTidy(f)), Machine()));

    [Fact]
    public void ScriptsCanBeRun() =>
        Assert.Empty(
            from file in Tree.Files
            where file is ".ci/run" || file.EndsWith(".sh", StringComparison.Ordinal)
            where (File.GetUnixFileMode(Path.Combine(Tree.Root, file)) & UnixFileMode.UserExecute) == 0
            select file);

    [GeneratedRegex(@"\b(TODO|FIXME|XXX|HACK)\b")]
    private static partial Regex Later();

    [GeneratedRegex(@"^\s*[^/*\s].*\bunsafe\b|^\s*unsafe\b")]
    private static partial Regex Unsafe();

    // Registries, mirrors and folders of one machine: a clone elsewhere must build as well.
    [GeneratedRegex(@"(?<![\w.])/(work|home|root)/\w|api\.nuget\.org|pypi\.org|registry\.npmjs|proxy\.golang|artifactory|host\.docker\.internal")]
    private static partial Regex Machine();

    private static bool IsTidy(string file) => file.StartsWith("tests/tidy/", StringComparison.Ordinal);

    private static bool IsText(string file) =>
        Path.GetExtension(file) is ".cs" or ".csproj" or ".props" or ".targets" or ".md" or ".sh" or ".py" or ".json" or ".txt" or ".sln" or ""
            or ".html" or ".service" or ".config";

    private static IEnumerable<string> Matches(IEnumerable<string> files, Regex pattern) =>
        from file in files
        from line in Tree.Lines(file).Select((text, index) => (text, index))
        where pattern.IsMatch(line.text)
        select $"{file}:{line.index + 1}: {line.text.Trim()}";
}
