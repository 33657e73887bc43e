using System.CommandLine;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Who is attached.</summary>
internal static class SessionCommands
{
    private static readonly string[] Headings =
        ["Id", "Volume", "Protocol", "Target", "Peer", "TLS", "Identity", "Since", "Read", "Written", "InFlight"];

    public static void AddTo(CommandSet commands)
    {
        var volume = new Option<string>("--volume_name", "-v") { Description = "Only this volume's", HelpName = "NAME" };
        Inputs.CheckName(volume);
        var target = new Option<string?>("--target", "-t") { Description = "Only this iSCSI target's", HelpName = "IQN" };
        commands.Add("list_session", "Lists the attached clients", [volume, target], async (context, cancel) =>
        {
            SessionList list = await context.Client.GetAsync("v1/sessions", ApiJson.Default.SessionList, cancel);
            if (context.Get(volume) is { } only) list = new SessionList([.. list.Sessions.Where(s => s.Volume.Split(',').Contains(only))]);
            if (context.Get(target) is { } iqn) list = new SessionList([.. list.Sessions.Where(s => s.Target == iqn)]);
            if (context.Printer.TryJson(list, ApiJson.Default.SessionList)) return ExitCode.Done;
            context.Printer.Line($"{list.Sessions.Count} sessions returned.");
            context.Printer.Table(Headings, [.. list.Sessions.Select(Row)]);
            return ExitCode.Done;
        });
        var id = new Argument<string>("session") { Description = "Id of the session" };
        commands.Add("drop_session", "Cuts a client off", [id], async (context, cancel) =>
        {
            string session = context.Get(id)!;
            context.Confirm($"cutting session {session}");
            await context.Client.DeleteAsync("v1/sessions/" + Uri.EscapeDataString(session), cancel);
            context.Printer.Line($"Session {session} cut.");
            return ExitCode.Done;
        });
    }

    private static string[] Row(SessionInfo s) =>
    [
        s.Id, s.Volume, s.Protocol, s.Target ?? "-", s.Peer, s.Tls ? "yes" : "no", s.Identity ?? "-",
        s.Since.ToString("u", CultureInfo.InvariantCulture), SizeText.Format(s.ReadBytes), SizeText.Format(s.WriteBytes),
        s.InFlight.ToString(CultureInfo.InvariantCulture),
    ];
}
