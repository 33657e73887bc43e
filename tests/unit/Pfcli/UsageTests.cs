using System.Net;
using BlockServer.Core.Api;
using BlockServer.Pfcli;
using Xunit;

namespace BlockServer.Tests.Unit.Pfcli;

public class UsageTests
{
    [Theory]
    [InlineData]
    [InlineData("no_such_command")]
    [InlineData("create_volume")]
    [InlineData("create_volume", "-v", "v1")]
    [InlineData("create_volume", "-v", "v1", "-s", "-5g")]
    [InlineData("create_volume", "-v", "v1", "-s", "0")]
    [InlineData("create_volume", "-v", "v1", "-s", "99999999t")]
    [InlineData("create_volume", "-v", "v1", "-s", "1x")]
    [InlineData("create_volume", "-v", "v1", "-s", "1g", "-r", "4")]
    [InlineData("create_volume", "-v", "v1", "-s", "1g", "-r", "many")]
    [InlineData("create_volume", "-v", "V 1", "-s", "1g")]
    [InlineData("create_volume", "-v", "v1", "-s", "1g", "--d", "x")]
    [InlineData("list_volume", "--nonsense")]
    [InlineData("list_volume", "--server", "ftp://127.0.0.1")]
    [InlineData("list_volume", "--server", "http://127.0.0.1/x")]
    [InlineData("show_volume", "v1")]
    [InlineData("drop_session")]
    [InlineData("query_task", "@file")]
    public async Task Wrong_usage_exits_2_with_one_line(params string[] args)
    {
        using var daemon = new StubDaemon();
        Assert.Equal(2, await daemon.RunAsync(args));
        Assert.Empty(daemon.Requests);
        Assert.Equal("", daemon.Out);
        Assert.Single(daemon.Error.TrimEnd('\n').Split('\n'));
        Assert.StartsWith("pfcli: ", daemon.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Help_and_version_exit_0()
    {
        using var daemon = new StubDaemon();
        Assert.Equal(0, await daemon.RunAsync("--help"));
        foreach (string command in new[] { "create_volume", "scrub_volume", "top" })
            Assert.Contains(command, daemon.Out, StringComparison.Ordinal);
        Assert.Equal(0, await daemon.RunAsync("create_volume", "--help"));
        Assert.Equal(0, await daemon.RunAsync("--version"));
    }

    [Fact]
    public async Task A_daemon_that_is_not_there_exits_1()
    {
        using var daemon = new StubDaemon { Broken = new HttpRequestException("Connection refused") };
        Assert.Equal(1, await daemon.RunAsync("list_volume"));
        Assert.Contains("is it running?", daemon.Error, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("<html>")]
    [InlineData("null")]
    [InlineData("{\"volumes\":[],\"more\":1}")]
    public async Task An_answer_that_is_not_ours_exits_1(string answer)
    {
        using StubDaemon daemon = new StubDaemon().AnswerText("GET /v1/volumes", answer);
        Assert.Equal(1, await daemon.RunAsync("list_volume"));
        Assert.Contains("not blockd's API", daemon.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_refusal_without_a_problem_document_still_says_something()
    {
        using StubDaemon daemon = new StubDaemon().AnswerText("GET /v1/volumes", "", HttpStatusCode.Unauthorized);
        Assert.Equal(1, await daemon.RunAsync("list_volume"));
        Assert.Contains("HTTP 401; give the --token-file", daemon.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_fault_of_our_own_is_one_line_too()
    {
        using var daemon = new StubDaemon { Broken = new InvalidOperationException("boom") };
        Assert.Equal(1, await daemon.RunAsync("list_volume"));
        Assert.Single(daemon.Error.TrimEnd('\n').Split('\n'));
    }

    [Fact]
    public async Task The_token_is_never_sent_unencrypted_to_another_host()
    {
        using var daemon = new StubDaemon();
        Assert.Equal(1, await daemon.RunAsync("list_volume", "--server", "http://192.0.2.1:49180"));
        Assert.Empty(daemon.Requests);
    }

    [Fact]
    public async Task A_missing_token_file_is_explained()
    {
        using var daemon = new StubDaemon();
        Assert.Equal(1, await daemon.RunWithoutTokenAsync("list_volume"));
        Assert.Contains("/nonexistent/.local/share/blockd/admin.token", daemon.Error, StringComparison.Ordinal);
    }

    [Fact]
    public void The_token_file_is_found_by_the_environment()
    {
        var environment = new Dictionary<string, string> { ["HOME"] = "/h" };
        string Find() => AccessToken.DefaultPath(environment.GetValueOrDefault);
        Assert.Equal("/h/.local/share/blockd/admin.token", Find());
        environment["XDG_DATA_HOME"] = "relative";
        Assert.Equal("/h/.local/share/blockd/admin.token", Find());
        environment["XDG_DATA_HOME"] = "/x";
        Assert.Equal("/x/blockd/admin.token", Find());
        environment["BLOCKD_TOKEN_FILE"] = "/t";
        Assert.Equal("/t", Find());
    }

    [Fact]
    public async Task Prefixes_of_general_options_work_before_and_behind_the_command()
    {
        using StubDaemon daemon = new StubDaemon().Answer("GET /v1/volumes", new VolumeList([]), ApiJson.Default.VolumeList);
        Assert.Equal(0, await daemon.RunAsync("--js", "--serv=http://localhost:1", "list_volume"));
        Assert.Equal("{\"volumes\":[]}\n", daemon.Out);
        Assert.Equal(0, await daemon.RunAsync("list_volume", "--js"));
    }
}
