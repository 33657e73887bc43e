using System.Xml.Linq;
using Xunit;

namespace BlockServer.Tests.Tidy;

/// <summary>The arrows between the rooms form a star: everybody knows core, only the daemon knows everybody.</summary>
public sealed class ArrowTests
{
    // A room that is not listed may know core only.
    private static readonly Dictionary<string, string[]> Allowed = new(StringComparer.Ordinal)
    {
        ["core"] = [],
        ["tools/pfcli"] = ["core", "streams", "client"],
        ["tools/pfinspect"] = ["core", "io", "storage"],
    };

    [Fact]
    public void ProjectsKnowOnlyWhatThePictureAllows()
    {
        List<string> wrong = [];
        foreach (string project in Tree.Projects)
        {
            string room = Room(project);
            bool free = room == "blockd" || IsUnder(room, "tests") || IsUnder(room, "bench");
            string[] allowed = Allowed.GetValueOrDefault(room, ["core"]);
            foreach (string target in References(project))
            {
                if (!free && !allowed.Contains(target))
                {
                    wrong.Add($"{room} must not know {target}");
                }
            }
        }

        Assert.Empty(wrong);
    }

    [Fact]
    public void NothingPointsAtTestsBenchOrTools()
    {
        Assert.Empty(
            from project in Tree.Projects
            let room = Room(project)
            where !IsUnder(room, "tests") && !IsUnder(room, "bench")
            from target in References(project)
            where IsUnder(target, "tests") || IsUnder(target, "bench") || IsUnder(target, "tools")
            select $"{room} points at {target}");
    }

    [Fact]
    public void CoreNeedsNoPackage() =>
        Assert.DoesNotContain("PackageReference", Tree.Read("core/BlockServer.Core.csproj"), StringComparison.Ordinal);

    [Fact]
    public void RoomsBehindTheSeamsKeepTheBannedList() =>
        Assert.Empty(
            from project in Tree.Projects
            let room = Room(project)
            where room is "core" or "storage" or "replication" or "cluster" or "streams" || IsUnder(room, "protocols")
            where !Tree.Read(project).Contains("<UsesSeams>true</UsesSeams>", StringComparison.Ordinal)
            select $"{room} does not set UsesSeams");

    [Fact]
    public void EveryProjectIsInTheSolution()
    {
        string solution = Tree.Read("BlockServer.sln").Replace('\\', '/');
        Assert.DoesNotContain(Tree.Projects, p => !solution.Contains($"\"{p}\"", StringComparison.Ordinal));
    }

    [Fact]
    public void EveryTestProjectIsRunByTestSh()
    {
        string script = Tree.Read("test.sh");
        string loop = script.Split('\n').Single(l => l.StartsWith("for suite in ", StringComparison.Ordinal));
        Assert.Empty(
            from project in Tree.Projects
            where Tree.Read(project).Contains("<IsTestProject>true", StringComparison.Ordinal)
            let name = Room(project)["tests/".Length..]
            where !loop.Contains($" {name}:", StringComparison.Ordinal)
            select project);
    }

    [Fact]
    public void StartShBuildsAgainWhenAnyRoomOfAProgramChanged()
    {
        string line = Tree.Read("start.sh").Split('\n').Single(l => l.StartsWith("newest() { find ", StringComparison.Ordinal));
        string[] watched = line.Split(' ');
        HashSet<string> rooms = [];
        Queue<string> open = new(["blockd", "tools/pfcli", "tools/pfinspect"]);
        while (open.TryDequeue(out string? room))
        {
            if (!rooms.Add(room)) continue;
            foreach (string known in References(Tree.Projects.Single(p => Room(p) == room))) open.Enqueue(known);
        }

        Assert.DoesNotContain(rooms, r => !watched.Contains(r.Split('/')[0]));
    }

    private static string Room(string project) => Path.GetDirectoryName(project)!.Replace('\\', '/');

    private static bool IsUnder(string room, string folder) =>
        room == folder || room.StartsWith(folder + "/", StringComparison.Ordinal);

    private static IEnumerable<string> References(string project) =>
        XDocument.Parse(Tree.Read(project)).Descendants("ProjectReference")
            .Select(r => (string)r.Attribute("Include")!)
            .Select(p => Path.GetFullPath(Path.Combine(Tree.Root, Path.GetDirectoryName(project)!, p.Replace('\\', '/'))))
            .Select(p => Room(Path.GetRelativePath(Tree.Root, p)));
}
