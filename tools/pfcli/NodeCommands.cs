using System.CommandLine;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>The node, its ports, and what is asked of a cluster's leader; a daemon alone leads itself.</summary>
internal static class NodeCommands
{
    public static void AddTo(CommandSet commands)
    {
        AddPorts(commands);
        foreach ((string verb, string description) in new[]
        {
            ("get_leader_conductor", "Shows the address of the daemon that leads"), ("get_pfc", "Shows the addresses of the daemons that administer, the leader first"),
        })
        {
            commands.Add(verb, description, [], async (context, cancel) =>
            {
                NodeInfo node = await NodeAsync(context, cancel);
                if (!context.Printer.TryJson(node, ApiJson.Default.NodeInfo))
                    context.Printer.Line(verb == "get_pfc" ? $"{context.Client.Server.Authority} ({node.Id}, leader)" : context.Client.Server.Authority);
                return ExitCode.Done;
            },
            $"pfcli {verb}");
        }

        commands.Add("get_conn_str", "Shows how the metadata store is reached, without secrets", [], async (context, cancel) =>
        {
            NodeInfo node = await NodeAsync(context, cancel);
            if (!context.Printer.TryJson(node, ApiJson.Default.NodeInfo))
                context.Printer.Line($"sqlite:{node.DataDir.TrimEnd('/')}/metadata.db (embedded, on {node.Id}; only the daemon may write it)");
            return ExitCode.Done;
        },
        "pfcli get_conn_str");
        AddSharedDevice(commands);
        AddDrain(commands);
    }

    private static Task<NodeInfo> NodeAsync(CommandContext context, CancellationToken cancel) =>
        context.Client.GetAsync("v1/node", ApiJson.Default.NodeInfo, cancel);

    private static void AddPorts(CommandSet commands)
    {
        var node = new Option<string?>("--node", "-i") { Description = "Id of the node, as list_store shows it (default: the only one)", HelpName = "NODE" };
        commands.Add("list_port", "Lists the addresses at which a node serves", [node], async (context, cancel) =>
        {
            NodeInfo info = await NodeAsync(context, cancel);
            if (context.Get(node) is { } wanted && wanted != info.Id)
                throw new CliException(NoNode(wanted, info));
            if (context.Printer.TryJson(info, ApiJson.Default.NodeInfo)) return ExitCode.Done;
            context.Printer.Line($"{info.Listeners.Count} ports returned.");
            context.Printer.Table(["Name", "IP Address", "Store Id", "Purpose"], [.. info.Listeners.Select((l, i) => new[]
            {
                $"{l.Protocol}-{i}", l.Address, info.Id,
                (l.Protocol == "api" ? "administration" : "clients") + (l.Tls ? ", TLS" : "") + (l.Insecure ? ", insecure" : ""),
            })]);
            return ExitCode.Done;
        },
        "pfcli list_port",
        "pfcli list_port -i node-1");
    }

    // A daemon alone has nobody to hand its volumes to.
    private static void AddDrain(CommandSet commands)
    {
        var which = new Argument<string>("node") { Description = "Id of the node, as list_store shows it" };
        commands.Add("drain_node", "Moves every volume off a node; a node that is alone has nowhere to move them to and refuses", [which], async (context, cancel) =>
        {
            NodeInfo node = await NodeAsync(context, cancel);
            string wanted = context.Get(which)!;
            throw new CliException(wanted != node.Id ? NoNode(wanted, node)
                : $"'{node.Id}' is the only node, so nothing was moved; pfcli drain_disk empties one of its disks, and pfcli export_image takes a volume elsewhere");
        },
        "pfcli drain_node node-1                                   # refused while there is one node: use drain_disk");
    }

    private static string NoNode(string wanted, NodeInfo node) => $"there is no node '{wanted}' here; this daemon is '{node.Id}', see pfcli list_store";

    private static void AddSharedDevice(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        Option<ulong> size = Inputs.Size("--size", "-s", "Size, for instance 128g", required: true);
        var device = new Option<string>("--device", "-d") { Description = "Name of the shared device", HelpName = "DEVICE", Required = true };
        commands.Add("create_pfs2", "Makes a volume on one shared device; this release has no shared devices and refuses", [name, size, device], (context, _) =>
            throw new CliException(
                $"this release has no shared devices, so no volume was made on {context.Get(device)}; pfcli create_volume -v {context.Get(name)} --disk DISK puts one on a disk of this node"),
            "pfcli create_pfs2 -v db -s 128g -d shared-1               # refused: use create_volume --disk");
    }
}
