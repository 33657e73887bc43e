using System.Diagnostics;
using System.Runtime.CompilerServices;

namespace BlockServer.Tests.Tidy;

/// <summary>The files of the repository that git tracks.</summary>
internal static class Tree
{
    /// <summary>The repository's root, found by the solution file.</summary>
    public static string Root { get; } = FindRoot();

    /// <summary>Paths of every tracked file, relative to the root, that is on the disk.</summary>
    public static IReadOnlyList<string> Files { get; } = ListFiles();

    /// <summary>The C# sources among them.</summary>
    public static IEnumerable<string> Sources => Files.Where(f => f.EndsWith(".cs", StringComparison.Ordinal));

    /// <summary>The project files among them.</summary>
    public static IEnumerable<string> Projects => Files.Where(f => f.EndsWith(".csproj", StringComparison.Ordinal));

    /// <summary>The text of one tracked file.</summary>
    public static string Read(string path) => File.ReadAllText(Path.Combine(Root, path));

    /// <summary>The lines of one tracked file.</summary>
    public static string[] Lines(string path) => File.ReadAllLines(Path.Combine(Root, path));

    private static string FindRoot([CallerFilePath] string here = "")
    {
        DirectoryInfo? folder = new(Path.GetDirectoryName(here)!);
        while (folder is not null && !File.Exists(Path.Combine(folder.FullName, "BlockServer.sln")))
        {
            folder = folder.Parent;
        }

        return folder?.FullName ?? throw new InvalidOperationException("BlockServer.sln is not above the tests");
    }

    private static List<string> ListFiles()
    {
        ProcessStartInfo start = new("git") { RedirectStandardOutput = true, WorkingDirectory = Root };
        foreach (string argument in new[] { "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard" })
        {
            start.ArgumentList.Add(argument);
        }

        using Process git = Process.Start(start)!;
        string text = git.StandardOutput.ReadToEnd();
        git.WaitForExit();
        if (git.ExitCode != 0)
        {
            throw new InvalidOperationException($"git ls-files ended with {git.ExitCode}");
        }

        return [.. text.Split('\0', StringSplitOptions.RemoveEmptyEntries).Where(f => File.Exists(Path.Combine(Root, f)))];
    }
}
